"""Write a model of ours as one GGUF file, which llama.cpp reads.

Tensors and fields are those of its converter for the same model of `transformers`. The rows of the embedding that pad
the vocabulary are left out: no text has them and they are never drawn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import cannot_write
from zerotollm.interop.config_json import Json
from zerotollm.interop.family import Family
from zerotollm.interop.weights import convert_dtype, to_theirs
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig

ARCHITECTURES = ("qwen3", "llama", "qwen2", "gpt2")
"""Values of `model_type` that llama.cpp has under the same name."""
NARROWER: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "qwen3": {"biases": ("none",), "rope_factor": (1.0,)},
    "llama": {"rope_factor": (1.0,)},
    "qwen2": {"rope_factor": (1.0,)},
    "gpt2": {"feed_forward": ("gelu",)},
}
"""Architecture -> field of TransformerConfig -> the values that llama.cpp computes, where transformers has more."""
FLOAT32_MATRICES = ("position_embd.weight",)  # llama.cpp adds them to others in float32 only
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{REST}": "qwen2",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{REST}": "llama-bpe",
}
"""Pattern of a pre-tokenizer -> its name in llama.cpp."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # types of tokens, as in SentencePiece
Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]


class Vocabulary(NamedTuple):
    """The tokens as llama.cpp spells them, by id, with the type of each, and the further fields of the tokenizer."""

    tokens: list[str]
    types: list[int]
    fields: dict[str, Value]


def write_gguf(
    out: Path,
    params: Params,
    model: TransformerConfig,
    family: Family,
    tokenizer: AnyTokenizer,
    *,
    name: str,
    dtype: str,
    chat_template: str | None,
) -> None:
    """Write the file completely or not at all. Raises UsageError where llama.cpp has no such model or tokenizer."""
    if find_spec("gguf") is None:
        raise UsageError("gguf is not installed: pip install gguf")
    import gguf

    if out.exists():
        raise UsageError(f"{out} exists already: give another --out, or delete it")
    check_architecture(family, model)
    tokens = vocabulary(tokenizer)
    tensors = gguf_tensors(params, model, family, tokenizer.vocab_size)
    narrow = {key: x for key, x in tensors.items() if x.ndim > 1 and key not in FLOAT32_MATRICES}
    tensors |= convert_dtype(narrow, dtype)
    temporary = out.absolute().with_name(f".{out.name}.writing")
    writer = gguf.GGUFWriter(temporary, family.model_type)
    writer.add_name(name)
    writer.add_file_type({"float32": 0, "float16": 1, "bfloat16": 32}[dtype])
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for field, value in (model_fields(model, family) | tokens.fields).items():
        add.get(type(value), writer.add_array)(field, value)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.types)
    if chat_template:
        writer.add_chat_template(chat_template)
    for tensor_name, x in tensors.items():
        if x.dtype.name == "bfloat16":  # which the library takes as bytes
            writer.add_tensor(tensor_name, x.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor_name, x)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_architecture(family: Family, model: TransformerConfig) -> None:
    """Raise UsageError, naming the fields, where llama.cpp has no such model."""
    if family.model_type not in ARCHITECTURES:
        raise UsageError(f"export writes no GGUF of {family.name}, only of {', '.join(ARCHITECTURES)}")
    narrower = NARROWER.get(family.model_type, {}).items()
    obstacles = [
        f"model.{field} is {getattr(model, field)!r} (not {' or '.join(map(repr, values))})"
        for field, values in narrower
        if getattr(model, field) not in values
    ]
    if obstacles:
        raise UsageError(f"{family.name} of llama.cpp cannot express this model: {', '.join(obstacles)}")


def model_fields(model: TransformerConfig, family: Family) -> dict[str, Value]:
    """Return the fields that describe the architecture."""
    norm = "layer_norm_epsilon" if model.norm == "layer" else "layer_norm_rms_epsilon"
    fields: dict[str, Value] = {
        "context_length": model.max_length,
        "embedding_length": model.width,
        "block_count": model.num_layers,
        "feed_forward_length": model.ff_width,
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.num_kv_heads,
        f"attention.{norm}": float(model.norm_epsilon),
    }
    if model.position == "rope":
        fields |= {
            "attention.key_length": model.head_width,
            "attention.value_length": model.head_width,
            "rope.dimension_count": model.head_width,
            "rope.freq_base": float(model.rope_theta),
        }
    return {f"{family.model_type}.{field}": value for field, value in fields.items()}


def gguf_tensors(
    params: Params, model: TransformerConfig, family: Family, num_tokens: int
) -> dict[str, np.ndarray]:
    """Return the tensors by their names in llama.cpp, float32, output axis first."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.model_type.upper()], model.num_layers)
    tensors = {}
    for theirs, x in to_theirs(params, family.weights(model)).items():
        name = names.get_name(theirs, (".weight", ".bias"))
        if name is None:
            raise UsageError(f"llama.cpp has no tensor for {theirs} of {family.name}")
        if name in ("token_embd.weight", "output.weight"):
            x = x[:num_tokens]
        elif family.model_type == "gpt2" and x.ndim == 2 and name not in FLOAT32_MATRICES:
            x = x.T  # GPT-2 of transformers has its input axis first
        elif family.model_type == "llama" and re.search(r"attn_[qk]\.", name):
            x = pair_neighbours(x, model.num_heads if "attn_q." in name else model.num_kv_heads)
        tensors[name] = np.ascontiguousarray(x)
    return tensors


def pair_neighbours(x: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of queries or keys in another order, in which llama.cpp's Llama rotates features 2i and 2i + 1.

    All other models, ours included, rotate features i and i + half of the head.
    """
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def vocabulary(tokenizer: AnyTokenizer) -> Vocabulary:
    """Return the vocabulary. Raises UsageError where llama.cpp would encode texts differently."""
    return _sentencepiece(tokenizer) if isinstance(tokenizer, Tokenizer) else _byte_level(tokenizer)


def _sentencepiece(tokenizer: Tokenizer) -> Vocabulary:
    """Return the tokens of a tokenizer of ours. llama.cpp merges as SentencePiece does: the best score first."""
    wanted = {
        "tokenizer.kind": (tokenizer.kind, ("bpe", "char")),
        "tokenizer.byte_fallback": (tokenizer.byte_fallback, (True,)),
        "tokenizer.normalization": (tokenizer.normalization, ("identity",)),
    }
    for field, (value, supported) in wanted.items():
        if value not in supported:
            raise UsageError(
                f"llama.cpp cannot encode texts as this tokenizer does: {field} is {value!r} (not "
                f"{' or '.join(map(repr, supported))})"
            )
    pieces = tokenizer._proto.pieces
    fields: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.stop_id,
        "tokenizer.ggml.unknown_token_id": tokenizer.unk_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    return Vocabulary([piece.piece for piece in pieces], [piece.type for piece in pieces], fields)


def _byte_level(tokenizer: PretrainedTokenizer) -> Vocabulary:
    """Return the tokens of an imported tokenizer, which must be byte-level BPE (Radford et al. 2019, section 2.2)."""
    description = tokenizer.tokenizer_json
    model, pre = description["model"], _pre_tokenizer(description)
    normalizer = (description.get("normalizer") or {"type": "NFC"})["type"]
    if model.get("type", "BPE") != "BPE" or pre is None or normalizer != "NFC":
        raise UsageError(
            "llama.cpp's vocabulary is written here only of byte-level BPE that splits text as GPT-2, Qwen2 or Llama 3 "
            "do: export the folder and convert it with llama.cpp's own converter"
        )
    added = {token["id"]: token for token in description.get("added_tokens") or []}
    tokens, types = [], []
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.piece(token_id)
        special = token_id in tokenizer.special_ids
        kind = CONTROL if special else USER_DEFINED if token_id in added else NORMAL if piece else UNUSED
        tokens.append(piece or f"[UNUSED{token_id}]")
        types.append(kind)
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    fields: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.stop_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": library.encode("a").ids[:1] == [tokenizer.bos_id],
    }
    if others := tokenizer.stop_ids[1:]:
        fields["tokenizer.ggml.eot_token_id"] = others[0]
    return Vocabulary(tokens, types, fields)


def _pre_tokenizer(description: Mapping[str, Json]) -> str | None:
    """Return llama.cpp's name of how a tokenizer splits text into words; None for an unknown way."""
    pre = description.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    splits_words = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and splits_words:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and splits_words and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not splits_words:
        return SPLITS.get((steps[0].get("pattern") or {}).get("Regex", ""))
    return None
