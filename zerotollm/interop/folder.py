"""A checkpoint folder of the `transformers` library, read with suspicion: config.json and safetensors, never a pickle.

Nothing heavy is imported before it is needed.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zerotollm.data.tokens.pretrained import PretrainedTokenizer, pretrained_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.interop import gpt2, llama, marian, qwen2, qwen3
from zerotollm.interop.weights import Family, from_theirs, parameter_shapes
from zerotollm.model.config import TransformerConfig

FAMILIES = (qwen3.FAMILY, llama.FAMILY, qwen2.FAMILY, gpt2.FAMILY, marian.FAMILY)
"""Where several can express a model, it is written as the first."""
CONFIG = "config.json"
SINGLE = "model.safetensors"
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TYPES = ("F32", "F16", "BF16", "F64")
"""Of numbers in safetensors that are read; all become float32."""
ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
PLAIN = {
    "rope_type": ("default", None),
    "type": ("default", None),
    "factor": (1.0, None),
    "partial_rotary_factor": (1.0, None),
}
"""What may be said of rotary positions that are plain, besides their theta; fields of other names only as null or
false."""
SHOWN = 3
"""Names of tensors in a message."""


@dataclass(frozen=True)
class ConfigFile:
    """A config.json. Every method raises UsageError, naming file and field, where a value is none that we know."""

    path: Path
    fields: dict[str, Any]

    def number(self, name: str, default: float | None = None, kind: Any = int | float) -> Any:
        """A number above 0; where it is absent or null the default, if there is one (of which 0 may be one)."""
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            whole = "whole " if kind is int else ""
            raise UsageError(f"{self.path}: {name} is {value!r}, and must be a {whole}number above 0")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number, likewise."""
        return self.number(name, default, int)

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        return bool(self.allow(name, default, (True, False)))

    def allow(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """A value that must be among those which our model can express."""
        value = self.fields.get(name, default)
        if value not in allowed:
            raise UsageError(
                f"{self.path}: {name} is {value!r}, and our model knows only {' or '.join(map(repr, allowed))}"
            )
        return value

    def token_id(self, name: str) -> int | None:
        """A token's id, the first where there are several; None where there is none."""
        value = self.fields.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"{self.path}: {name} is {value!r}, and must be the id of a token")
        return value

    def no_sliding_window(self) -> None:
        """Attention looks at the whole context, in every layer."""
        self.allow("use_sliding_window", False, (False, None))
        layers = self.fields.get("layer_types") or []
        if set(layers) - {"full_attention"}:
            raise UsageError(
                f"{self.path}: layer_types has {sorted(set(layers) - {'full_attention'})[0]!r}, "
                "and our model knows only 'full_attention'"
            )

    def rope_theta(self) -> float:
        """Of plain rotary positions. All else that a file may say of them could stretch them, and is refused."""
        others = {name: value for name, value in self.fields.items() if name not in ROPE}
        said = {
            "": {name: value for name, value in others.items() if name.startswith("rope_") or name in PLAIN}
        }
        thetas = [self.fields.get("rope_theta")]
        for where in ("rope_parameters", "rope_scaling"):
            inside = self.fields.get(where) or {}
            if not isinstance(inside, dict):
                raise UsageError(f"{self.path}: {where} is {inside!r}, and must be an object of fields")
            thetas.append(inside.get("rope_theta"))
            said[f"{where}."] = {name: value for name, value in inside.items() if name != "rope_theta"}
        for where, fields in said.items():
            for name, value in fields.items():
                shown = where + ("rope_type" if name == "type" else name)
                replace(self, fields={shown: value}).allow(shown, None, PLAIN.get(name, (None, False)))
        given = {
            replace(self, fields={"rope_theta": x}).number("rope_theta") for x in thetas if x is not None
        }
        if len(given) > 1:
            raise UsageError(f"{self.path}: rope_theta is both {' and '.join(map(str, sorted(given)))}")
        return float(*given or [10000.0])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UsageError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def read_model(folder: Path) -> tuple[Family, ConfigFile, TransformerConfig]:
    """Whose model a folder holds, and which it is with us, resolved. Raises UsageError where we have no such model."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one with a {CONFIG} and safetensors")
    file = ConfigFile(folder / CONFIG, read_json(folder / CONFIG))
    kind = file.fields.get("model_type")
    for family in FAMILIES:
        if family.model_type == kind:
            file.allow("quantization_config", None, (None,))
            try:
                return family, file, family.read_config(file)
            except UsageError as error:
                # What `resolve` says names our fields; which file they came from must be said too.
                if str(file.path) in str(error):
                    raise
                raise UsageError(f"{file.path} describes no model: {error}") from None
    raise UsageError(
        f"{file.path}: model_type is {kind!r}, and those that can be read are "
        f"{', '.join(family.model_type for family in FAMILIES)}"
    )


def read_params(folder: Path, family: Family, model: TransformerConfig) -> dict[str, Any]:
    """The parameters, a nested dict of float32 numpy arrays.

    Raises UsageError where a tensor is missing, surplus or of another shape than `model`, resolved, asks for, and where
    there are no safetensors; RunError where a file is damaged.
    """
    files = _tensor_files(folder)
    weights, tied = family.weights(model), model.tie_embeddings
    prefix, spellings = family.prefix, {weight.theirs: weight.theirs for weight in weights}
    if not any(name.startswith(prefix) for name in files):  # saved without the head, or as OpenAI did
        spellings = {name: name.removeprefix(prefix) for name in spellings}
    expected = set(spellings.values())
    surplus = [
        name
        for name in files
        if name not in expected
        and not re.fullmatch(family.computed, name)
        and not (tied and name == "lm_head.weight")
    ]
    missing = [name for name in spellings.values() if name not in files]
    if model.biases == "everywhere" and spellings["final_logits_bias"] not in files:
        missing.remove("final_logits_bias")  # a buffer of zeros that need not be saved
    if missing or surplus:
        found = [
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for what, names in (("missing", missing), ("surplus", surplus))
            if names
        ]
        raise UsageError(
            f"the tensors in {folder} are not those of the {family.name} in its {CONFIG}; {'; '.join(found)}"
        )

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        import numpy as np

        theirs = spellings[name]
        return _read(files[theirs], theirs, shape) if theirs in files else np.zeros(shape, np.float32)

    params = from_theirs(weights, parameter_shapes(model), tensor)
    _check_copies(folder, files, params)
    return params


def read_tokenizer(folder: Path, file: ConfigFile, model: TransformerConfig) -> PretrainedTokenizer:
    """The tokenizer of tokenizer.json, with the special ids of `file`.

    Raises UsageError where there is none, where it cannot be used, and where it has more tokens than `model`, resolved,
    has rows.
    """
    path, pair = folder / TOKENIZER, model.architecture == "encoder-decoder"
    if not path.exists():
        raise UsageError(f"{folder} has no {TOKENIZER}: let transformers save its fast tokenizer there")
    eos, bos, pad = (file.token_id(f"{name}_token_id") for name in ("eos", "bos", "pad"))
    if eos is None:
        raise UsageError(f"{file.path}: eos_token_id is missing, and says what ends a text")
    if pair:
        bos = file.token_id("decoder_start_token_id")
        if pad is None or bos is None:
            raise UsageError(f"{file.path}: pad_token_id and decoder_start_token_id must both be there")
    tokenizer = pretrained_tokenizer(read_json(path), bos_id=bos, eos_id=eos, pad_id=pad, source=str(path))
    if tokenizer.vocab_size > model.vocab_size:
        raise UsageError(
            f"{path} and the special ids of {file.path} need {tokenizer.vocab_size:,} rows of the embedding, and "
            f"vocab_size is {model.vocab_size:,}: the two do not belong together"
        )
    return tokenizer


def _check_copies(folder: Path, files: dict[str, Path], params: dict[str, Any]) -> None:
    """Raises UsageError where what should be a copy of the embedding is another matrix."""
    import numpy as np

    embedding_VD = params["embedding"]
    if "head" in params:
        return
    copies = ["lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    for name in copies:
        if name in files and not np.array_equal(_read(files[name], name, embedding_VD.shape), embedding_VD):
            raise UsageError(
                f"{name} in {folder} differs from the embedding, and {CONFIG} says that they are one: "
                "set tie_word_embeddings to false where they are not"
            )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Name of every tensor -> the file that it is in. Raises UsageError where there is no safetensors file."""
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise UsageError(f"{index} has no weight_map of file names")
        for name in set(files.values()):
            if Path(name).name != name:
                raise UsageError(f"{index} names the file {name!r}, which is not in {folder}")
        paths = sorted({folder / name for name in files.values()})
    elif single.exists():
        paths = [single]
    else:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UsageError(
                f"{folder / pickles[0]} is a pickle, which can run any code when it is read, and is never read here: "
                "let its maker save it as safetensors"
            )
        raise UsageError(f"{folder} has no {SINGLE} and no {INDEX}")
    found: dict[str, Path] = {}
    for path in paths:
        with _opened(path) as file:
            found |= dict.fromkeys(file.keys(), path)
    if index.exists() and set(files) - set(found):
        name = min(set(files) - set(found))
        raise UsageError(f"{index} says that {name} is in {files[name]}, and it is not")
    return found


def _read(path: Path, name: str, shape: tuple[int, ...]) -> Any:
    """One tensor in float32. Raises UsageError where it has another shape or holds no such numbers."""
    import jax  # noqa: F401  with it numpy knows bfloat16
    import numpy as np

    with _opened(path) as file:
        about = file.get_slice(name)
        found, kind = tuple(about.get_shape()), about.get_dtype()
        if found != shape:
            raise UsageError(
                f"{name} in {path} has the shape {_by(found)}, and {CONFIG} asks for {_by(shape)}"
            )
        if kind not in TYPES:
            raise UsageError(f"{name} in {path} holds {kind}, and can be read as {', '.join(TYPES)}")
        return np.asarray(file.get_tensor(name)).astype(np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as error:
        raise RunError(f"{path} is damaged or no safetensors file ({error}): get it again") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of a single number"
