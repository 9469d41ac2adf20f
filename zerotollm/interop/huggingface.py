"""A model of ours as a folder that the `transformers` library loads without any code of ours.

Nothing heavy is imported before it is needed.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import cannot_write
from zerotollm.interop.folder import CONFIG, FAMILIES, SINGLE
from zerotollm.interop.tokenizer_json import tokenizer_json
from zerotollm.interop.weights import Family, to_theirs
from zerotollm.model.config import TransformerConfig


def family_of(model: TransformerConfig) -> Family:
    """The first family that expresses `model`, resolved, exactly. Raises UsageError with the fields in the way."""
    found = [(family.obstacles(model), family) for family in FAMILIES]
    obstacles, family = min(found, key=lambda pair: len(pair[0]))
    if obstacles:
        raise UsageError(
            f"no model of transformers is exactly this one: of {family.name}, the nearest, it differs in "
            f"{', '.join(obstacles)}"
        )
    return family


def write_folder(
    out: Path, params: Any, model: TransformerConfig, tokenizer: AnyTokenizer, card: str
) -> Family:
    """Writes model.safetensors (float32), config.json, generation_config.json, the tokenizer and `card` as README.md.

    `out` is whole or not there: it must not exist before, or be empty. Raises UsageError where it holds something and
    where no family expresses the model, RunError where the disk is full or read-only.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    family = family_of(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already and is not empty: give another --out, or delete it")
    files = {
        CONFIG: _json(model_config(family, model, tokenizer)),
        "generation_config.json": _json(generation_config(model, tokenizer)),
        "README.md": card.encode(),
    } | tokenizer_files(model, tokenizer)
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        tensors = to_theirs(params, family.weights(model))
        save_file(tensors, temporary / SINGLE, metadata={"format": "pt"})
        shutil.copymode(temporary / CONFIG, temporary / SINGLE)  # safetensors lets nobody else read it
        os.replace(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from None
    except SafetensorError as error:  # what the disk says, in an error of its own
        raise RunError(f"cannot write {out}: {error}; make room or choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return family


def model_config(family: Family, model: TransformerConfig, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": "float32",
        "torch_dtype": "float32",  # how transformers before 5 and other programs spell it
        **family.write_config(model),
        **_special_ids(model, tokenizer),
    }


def generation_config(model: TransformerConfig, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """The content of generation_config.json: what we never draw is suppressed, a text ends where ours does."""
    never = list(range(tokenizer.vocab_size, model.vocab_size))
    if isinstance(tokenizer, Tokenizer):
        never += [tokenizer.pad_id]
        if model.architecture == "encoder-decoder":
            never += [tokenizer.bos_id]
    return {
        **_special_ids(model, tokenizer),
        **({"suppress_tokens": sorted(never)} if never else {}),
        **(
            {"num_beams": 1, "max_length": model.max_length}
            if model.architecture == "encoder-decoder"
            else {}
        ),
    }


def tokenizer_files(model: TransformerConfig, tokenizer: AnyTokenizer) -> dict[str, bytes]:
    """Name to content. Raises UsageError where the tokenizer cannot be converted exactly."""
    pair = model.architecture == "encoder-decoder"
    about: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id if pair else tokenizer.stop_id),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
        "split_special_tokens": True,  # with us no text holds a special token, whatever it looks like
    }
    if not isinstance(tokenizer, Tokenizer):
        return {"tokenizer.json": _json(tokenizer.tokenizer_json), "tokenizer_config.json": _json(about)}
    about["unk_token"] = tokenizer.piece(tokenizer.unk_id)
    return {
        "tokenizer.json": _json(tokenizer_json(tokenizer, sentences=pair)),
        "tokenizer_config.json": _json(about),
        # Programs that read SentencePiece itself, such as llama.cpp's converter, take this one.
        "tokenizer.model": tokenizer.model,
    }


def _special_ids(model: TransformerConfig, tokenizer: AnyTokenizer) -> dict[str, Any]:
    pair = model.architecture == "encoder-decoder"
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id if pair else tokenizer.stop_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return ids | ({"decoder_start_token_id": tokenizer.bos_id} if pair else {})


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
