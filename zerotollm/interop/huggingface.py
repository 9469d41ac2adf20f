"""Write a model of ours as a folder that the `transformers` library loads without our code."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import cannot_write
from zerotollm.interop.config_json import Json
from zerotollm.interop.family import Family
from zerotollm.interop.folder import (
    CHAT_TEMPLATE,
    CONFIG,
    FAMILIES,
    GENERATION_CONFIG,
    SINGLE,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from zerotollm.interop.tokenizer_json import tokenizer_json
from zerotollm.interop.weights import convert_dtype, to_theirs
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig


def family_of(model: TransformerConfig) -> Family:
    """Return the first family that expresses `model`, resolved. Raises UsageError with the fields that differ."""
    obstacles, family = min(
        ((family.obstacles(model), family) for family in FAMILIES), key=lambda pair: len(pair[0])
    )
    if obstacles:
        raise UsageError(
            f"no model of transformers is exactly this one. The nearest is {family.name}, from which it differs in "
            f"{', '.join(obstacles)}"
        )
    return family


def write_folder(
    out: Path,
    params: Params,
    model: TransformerConfig,
    tokenizer: AnyTokenizer,
    card: str,
    *,
    dtype: str = "float32",
    chat_template: str | None = None,
) -> Family:
    """Write model.safetensors, config.json, generation_config.json, the tokenizer, and `card` as README.md.

    With a `chat_template`, the tokenizer finds special tokens in a text, as the template writes them. Raises UsageError
    where `out` is not empty or no family expresses the model, RunError where the disk is full or read-only.
    """
    family = family_of(model)
    files = {
        CONFIG: _json(model_config(family, model, tokenizer, dtype)),
        GENERATION_CONFIG: _json(generation_config(family, model, tokenizer)),
        "README.md": card.encode(),
    } | tokenizer_files(family, model, tokenizer, chat_template)
    with complete_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        tensors = convert_dtype(to_theirs(params, family.weights(model)), dtype)
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / SINGLE)  # safetensors makes it private
    return family


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which becomes `out` at the end: `out` has all of its files or is not there.

    Raises UsageError where `out` is not empty, RunError where the disk is full or read-only.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already and is not empty: give another --out, or delete it")
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from None
    except SafetensorError as error:  # how safetensors reports a full disk
        raise RunError(f"cannot write {out}: {error}; make room or choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_config(family: Family, model: TransformerConfig, tokenizer: AnyTokenizer, dtype: str) -> Json:
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,  # the spelling of transformers before 5, and of other programs
        **family.write_config(model),
        **_special_ids(family, tokenizer),
    }


def generation_config(family: Family, model: TransformerConfig, tokenizer: AnyTokenizer) -> Json:
    """Return the content of generation_config.json, which suppresses the tokens that we never draw."""
    suppressed = list(range(tokenizer.vocab_size, model.vocab_size))
    if isinstance(tokenizer, Tokenizer):
        suppressed += [tokenizer.pad_id, *([tokenizer.bos_id] if family.encoder_decoder else [])]
    several = not family.encoder_decoder and len(tokenizer.stop_ids) > 1
    return {
        **_special_ids(family, tokenizer),
        **({"eos_token_id": list(tokenizer.stop_ids)} if several else {}),
        **({"suppress_tokens": sorted(suppressed)} if suppressed else {}),
        **({"num_beams": 1, "max_length": model.max_length} if family.encoder_decoder else {}),
    }


def tokenizer_files(
    family: Family, model: TransformerConfig, tokenizer: AnyTokenizer, chat_template: str | None = None
) -> dict[str, bytes]:
    """Return the tokenizer's files by name. Raises UsageError where the tokenizer cannot be converted exactly."""
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(_end_id(family, tokenizer)),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
        # Our tokenizers never find a special token in a text. A chat template, however, writes them.
        "split_special_tokens": chat_template is None,
    }
    files = {}
    if chat_template:
        files[CHAT_TEMPLATE] = chat_template.encode()
    if isinstance(tokenizer, Tokenizer):
        config["unk_token"] = tokenizer.piece(tokenizer.unk_id)
        content = tokenizer_json(tokenizer, sentences=family.encoder_decoder, escapes=bool(chat_template))
        # For programs that read SentencePiece, such as llama.cpp's converter.
        files["tokenizer.model"] = tokenizer.model
    else:
        content = tokenizer.tokenizer_json
        if tokenizer.chat_template and chat_template == tokenizer.chat_template.source:
            config |= dict.fromkeys(SPECIAL_TOKENS) | tokenizer.chat_template.special_tokens
    return {TOKENIZER: _json(content), TOKENIZER_CONFIG: _json(config)} | files


def _special_ids(family: Family, tokenizer: AnyTokenizer) -> Json:
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": _end_id(family, tokenizer),
        "pad_token_id": tokenizer.pad_id,
    }
    return ids | ({"decoder_start_token_id": tokenizer.bos_id} if family.encoder_decoder else {})


def _end_id(family: Family, tokenizer: AnyTokenizer) -> int:
    return tokenizer.eos_id if family.encoder_decoder else tokenizer.stop_id


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
