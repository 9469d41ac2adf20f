"""Write a model as one readable program in NumPy, beside its weights and its vocabulary."""

import json
from pathlib import Path

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.interop.huggingface import complete_folder
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.programs.source import named_arrays, render
from zerotollm.programs.vocabulary import vocabulary


def write_numpy(
    out: Path, params: Params, model: TransformerConfig, tokenizer: AnyTokenizer, *, title: str
) -> None:
    """Write model.py, weights.npz and vocabulary.json to a new folder.

    The program has the parts of this model alone. Raises UsageError where it cannot tokenize as the model does.
    """
    tokens, arrays = vocabulary(tokenizer), named_arrays(params)
    size = sum(x.size for x in arrays.values())
    source = render("model.py.jinja", model, title=title, parameters=size, vocabulary=tokens)
    with complete_folder(out) as folder:
        (folder / "model.py").write_text(source, encoding="utf-8")
        (folder / "vocabulary.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
        np.savez(folder / "weights.npz", utf8=tokenizer.utf8.next_state_SV, **arrays)  # pyright: ignore[reportArgumentType]
