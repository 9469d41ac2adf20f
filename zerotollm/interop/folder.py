"""Read a folder of the `transformers` library: config.json, safetensors and tokenizer.json, never a pickle."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from zerotollm.data.sources.lines import cannot_read
from zerotollm.data.tokens.pretrained import ChatTemplate, PretrainedTokenizer, pretrained_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.interop import gpt2, llama, marian, mistral, qwen2, qwen3, smollm3
from zerotollm.interop.config_json import ConfigFile, Json
from zerotollm.interop.family import Family
from zerotollm.interop.weights import from_theirs, parameter_shapes
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.run_directory import refuse_gguf

FAMILIES = (
    qwen3.FAMILY,
    llama.FAMILY,
    qwen2.FAMILY,
    mistral.FAMILY,
    smollm3.FAMILY,
    gpt2.FAMILY,
    marian.FAMILY,
)
"""A model that several can express is exported as the first."""
CONFIG = "config.json"
SINGLE = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
LONGEST_TEMPLATE = 500_000  # characters
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")  # variables of a chat template
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = ("F32", "F16", "BF16", "F64")  # types in safetensors that are read; all become float32
SHOWN = 3  # tensor names in a message


def read_json(path: Path) -> Json:
    """Return a JSON object. Raises UsageError where the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot_read(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object")
    return value


def read_model(folder: Path) -> tuple[Family, ConfigFile, TransformerConfig]:
    """Return the family of a folder, its config.json and the resolved model. Raises UsageError for unsupported ones."""
    refuse_gguf(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one with a {CONFIG} and safetensors")
    file = ConfigFile(folder / CONFIG, read_json(folder / CONFIG))
    families = {family.model_type: family for family in FAMILIES}
    model_type = file.fields.get("model_type")
    if model_type not in tuple(families):  # a list or an object has no hash
        message = f"{file.path}: model_type is {model_type!r}, and only {', '.join(families)} are supported"
        raise UsageError(message)
    file.allow("quantization_config", None, (None,))
    family = families[model_type]
    try:
        return family, file, family.read_config(file)
    except UsageError as error:
        if str(file.path) in str(error):
            raise
        raise UsageError(f"{file.path} describes no valid model: {error}") from None


def read_params(folder: Path, family: Family, model: TransformerConfig) -> Params:
    """Return the parameters of a resolved model as float32 arrays. Raises UsageError for other tensors than its own."""
    files = _tensor_files(folder)
    weights, prefix = family.weights(model), family.prefix
    # A folder that was saved without the head, or as OpenAI saved GPT-2, omits the prefix.
    omitted = "" if any(name.startswith(prefix) for name in files) else prefix
    names = {weight.theirs: weight.theirs.removeprefix(omitted) for weight in weights}
    copies = family.copies if model.tie_embeddings else ()
    expected = {*names.values(), *copies}
    required = (names[weight.theirs] for weight in weights if not weight.optional)
    missing = [name for name in required if name not in files]
    surplus = [name for name in files if name not in expected and not re.fullmatch(family.computed, name)]
    if missing or surplus:
        lists = "; ".join(
            f"{len(tensors)} {kind}: {', '.join(tensors[:SHOWN])}{', ...' if len(tensors) > SHOWN else ''}"
            for kind, tensors in (("missing", missing), ("surplus", surplus))
            if tensors
        )
        message = f"the tensors in {folder} are not those of the {family.name} in its {CONFIG}; {lists}"
        raise UsageError(message)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = names[name]
        return _read(files[name], name, shape) if name in files else np.zeros(shape, np.float32)

    params = from_theirs(weights, parameter_shapes(model), tensor)
    embedding = params["embedding"]
    for name in copies:
        if name in files and not np.array_equal(_read(files[name], name, embedding.shape), embedding):
            raise UsageError(
                f"{name} in {folder} differs from the embedding, but {CONFIG} ties them: "
                "set tie_word_embeddings to false"
            )
    return params


def read_tokenizer(
    folder: Path, family: Family, file: ConfigFile, model: TransformerConfig
) -> PretrainedTokenizer:
    """Return the tokenizer of tokenizer.json, with the special ids of config.json, or raise UsageError.

    Stop ids come from config.json and generation_config.json; the chat template from its own file, or from
    tokenizer_config.json.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise UsageError(f"{folder} has no {TOKENIZER}: save the fast tokenizer of transformers there")
    eos, bos, pad = (file.token_id(f"{name}_token_id") for name in ("eos", "bos", "pad"))
    if eos is None:
        raise UsageError(f"{file.path}: eos_token_id is missing; set it to the token that ends a text")
    if family.encoder_decoder:
        bos = file.token_id("decoder_start_token_id")
        if pad is None or bos is None:
            raise UsageError(f"{file.path}: pad_token_id or decoder_start_token_id is missing; set both")
    stop_ids = file.token_ids("eos_token_id")
    if (folder / GENERATION_CONFIG).exists():
        generation = folder / GENERATION_CONFIG
        stop_ids += ConfigFile(generation, read_json(generation)).token_ids("eos_token_id")
    tokenizer = pretrained_tokenizer(
        read_json(path),
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        stop_ids=() if family.encoder_decoder else stop_ids,
        chat_template=_read_chat_template(folder),
        source=str(path),
    )
    if tokenizer.vocab_size > model.vocab_size:
        raise UsageError(
            f"{path} and the special ids of {file.path} need {tokenizer.vocab_size:,} rows of the embedding, and "
            f"vocab_size is {model.vocab_size:,}: the two do not belong together"
        )
    return tokenizer


def _read_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a folder. Raises UsageError where it is too long or no text."""
    path, own_file = folder / TOKENIZER_CONFIG, folder / CHAT_TEMPLATE
    fields = read_json(path) if path.exists() else {}
    if own_file.exists():
        path = own_file
        try:
            with own_file.open(encoding="utf-8") as opened:
                source = opened.read(LONGEST_TEMPLATE + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {own_file}: {error}") from None
    else:
        source = fields.get("chat_template")
    if isinstance(source, list):  # several by name
        names = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = names.get("default")
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > LONGEST_TEMPLATE:
        raise UsageError(
            f"the chat template in {path} must be a text of at most {LONGEST_TEMPLATE:,} characters: "
            "delete it to import the model without one"
        )
    special_tokens = {name: fields.get(name) for name in SPECIAL_TOKENS}
    spelled = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in special_tokens.items()
    }
    return ChatTemplate(source, {name: token for name, token in spelled.items() if isinstance(token, str)})


def _tensor_files(folder: Path) -> dict[str, Path]:
    index, single = folder / INDEX, folder / SINGLE
    indexed: dict[str, str] = {}
    if index.exists():
        indexed = read_json(index).get("weight_map") or {}
        if not (isinstance(indexed, dict) and indexed and all(isinstance(x, str) for x in indexed.values())):
            raise UsageError(f"{index} has no weight_map of file names")
        for name in set(indexed.values()):
            if Path(name).name != name:
                raise UsageError(f"{index} names the file {name!r}, which is not in {folder}")
    elif not single.exists():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UsageError(
                f"{folder / pickles[0]} is a pickle, which can run any code when it is read, so it is never read: "
                "save the model as safetensors"
            )
        for path in folder.glob("*.gguf"):
            refuse_gguf(path)
        raise UsageError(f"{folder} has no {SINGLE} and no {INDEX}")
    files: dict[str, Path] = {}
    for path in sorted({folder / name for name in indexed.values()} or {single}):
        with _opened(path) as file:
            files |= dict.fromkeys(file.keys(), path)
    for name in sorted(set(indexed) - set(files)):
        raise UsageError(f"{index} says that {name} is in {indexed[name]}, and it is not")
    return files


def _read(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with _opened(path) as file:
        header = file.get_slice(name)
        actual, dtype = tuple(header.get_shape()), header.get_dtype()
        if actual != shape:
            raise UsageError(f"{name} in {path} has shape {_by(actual)}, and {CONFIG} asks for {_by(shape)}")
        if dtype not in DTYPES:
            raise UsageError(f"{name} in {path} holds {dtype}; supported types are {', '.join(DTYPES)}")
        return np.asarray(file.get_tensor(name)).astype(np.float32)  # jax is imported: numpy knows bfloat16


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as error:
        raise RunError(f"{path} is damaged or no safetensors file ({error}): get it again") from None
    except OSError as error:
        raise cannot_read(path, error) from None


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
