"""Write a model as one HTML file that runs it in a browser, without a network and without a server.

The file holds three scripts: the program, what it knows of the model as JSON, and the weights as text. Its content
security policy names the hashes of the program and of the style, so a browser runs no other script, whatever the
vocabulary or a text may hold.
"""

import base64
import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from zerotollm.data.sources.conversations import ROLES
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.explain.figures.plotly_json import in_script
from zerotollm.host.atomic_files import write_atomically
from zerotollm.model.build import Params
from zerotollm.model.config import ROPE_KEPT, ROPE_STRETCHED, TransformerConfig
from zerotollm.programs.quantized import Agreement, Rows, quantize
from zerotollm.programs.vocabulary import vocabulary
from zerotollm.types import Json

HERE = Path(__file__).parent / "browser"
SCRIPTS = ("tokenizer.js", "product.js", "network.js", "session.js", "views.js", "page.js")
MOVED = (0x00, 0x0D, 0x3C)
"""Codes of 7 bits that a script element changes, or that could end it: NUL, carriage return and `<`."""
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed")


@dataclass(frozen=True)
class Facts:
    """What the page says of a model, and how it begins."""

    title: str
    corpus: str
    step: int
    bpb: float | None
    """bits per byte of held-out text; None: not measured"""
    agreement: Agreement | None
    """of 8 bits with float32; None: not measured"""
    sampling: SamplingConfig
    chats: bool = False
    """whether it was trained on conversations here"""
    translates: bool = False
    """whether it was trained to translate"""


def check_page(out: Path, model: TransformerConfig, tokenizer: AnyTokenizer, *, translates: bool) -> None:
    """Raise UsageError for a tokenizer or an encoder-decoder that a page does not have, or a file that exists."""
    vocabulary(tokenizer)
    if model.encoder_layers and not translates:
        raise UsageError(
            "the page of --format html continues texts or translates, and this model does neither: take --format numpy"
        )
    if out.exists():
        raise UsageError(f"{out} exists already: give another --out, or delete it")


def write_html(
    out: Path, params: Params, model: TransformerConfig, tokenizer: AnyTokenizer, facts: Facts
) -> None:
    """Write the page. Raises UsageError as `check_page` does."""
    check_page(out, model, tokenizer, translates=facts.translates)
    write_atomically(out, page(params, model, tokenizer, facts))


def page(params: Params, model: TransformerConfig, tokenizer: AnyTokenizer, facts: Facts) -> str:
    """Return the HTML of the page. The same arguments give the same text."""
    tokens = vocabulary(tokenizer)
    if "scores" in tokens:
        tokens["scores"] = [int(x) if float(x).is_integer() else x for x in tokens["scores"]]
    payload, arrays = pack(quantize(params))
    data: Json = {
        "title": facts.title,
        "corpus": facts.corpus,
        "step": facts.step,
        "bpb": facts.bpb,
        "agreement": facts.agreement and facts.agreement._asdict(),
        "parameters": sum(array["rows"] * array["cols"] for array in arrays),
        "config": asdict(model) | {"rope_kept": ROPE_KEPT, "rope_stretched": ROPE_STRETCHED},
        "sampling": {name: getattr(facts.sampling, name) for name in SAMPLED},
        "prompt": facts.sampling.prompt,
        "roles": ROLES if facts.chats else None,
        "vocabulary": tokens,
        "utf8": _unusual_transitions(tokenizer.utf8),
        "arrays": arrays,
        "bytes": len(payload),
    }
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return _template().render(
        title=facts.title,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(in_script(data)),
        weights=Markup(seven_bits(payload)),
    )


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja")


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows this style, this script and WebAssembly, and nothing else."""

    def digest(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    allowed = {
        "default-src": "'none'",
        "script-src": f"{digest(script)} 'wasm-unsafe-eval'",
        "style-src": digest(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())


def pack(weights: dict[str, Rows | np.ndarray]) -> tuple[bytes, list[Json]]:
    """Return the bytes of all arrays, float32 before int8, and where each lies in them."""
    floats, smalls = bytearray(), bytearray()
    arrays: list[Json] = []
    for name, x in weights.items():
        if isinstance(x, Rows):
            rows, cols = x.small_RX.shape
            arrays.append(
                {"name": name, "rows": rows, "cols": cols, "at": len(smalls), "scales": len(floats)}
            )
            smalls += x.small_RX.tobytes()
            floats += x.scales_R.astype("<f4").tobytes()
        else:
            rows, cols = x.shape if x.ndim == 2 else (1, x.size)
            arrays.append({"name": name, "rows": rows, "cols": cols, "at": len(floats)})
            floats += x.astype("<f4").tobytes()
    for array in arrays:
        if "scales" in array:
            array["at"] += len(floats)
    return bytes(floats + smalls), arrays


def seven_bits(payload: bytes) -> str:
    """Return bytes as text, 7 bits a character, of the codes 0 to 127 but for `MOVED`, which are 128 higher.

    8 characters hold 7 bytes. In UTF-8 the text takes 8/7 of the bytes, and for random bytes 2.3 % more.
    """
    padded = np.frombuffer(payload + bytes(-len(payload) % 7), np.uint8).reshape(-1, 7)
    codes = np.zeros((len(padded), 8), np.uint8)
    for k in range(7):
        codes[:, k] |= padded[:, k] >> (k + 1)
        codes[:, k + 1] |= (padded[:, k] & ((1 << (k + 1)) - 1)) << (6 - k)
    codes[np.isin(codes, MOVED)] += 128
    return codes.tobytes().decode("latin-1")


def _unusual_transitions(utf8: Utf8Automaton) -> Json:
    """Return the next state in each state for the tokens that are no whole characters: id -> list."""
    usual_S = np.where(np.arange(len(utf8.next_state_SV)) == 0, 0, -1)
    unusual = np.flatnonzero((utf8.next_state_SV != usual_S[:, None]).any(0))
    return {str(v): utf8.next_state_SV[:, v].tolist() for v in unusual}
