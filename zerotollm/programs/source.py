"""The source of a program from its template, and the parameters that lie beside it."""

import re
from functools import cache
from pathlib import Path

import jax
import jinja2
import numpy as np

from zerotollm.model.build import Params
from zerotollm.model.config import BIASED, ROPE_KEPT, ROPE_STRETCHED, TransformerConfig
from zerotollm.types import Json


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def render(
    template: str, model: TransformerConfig, *, title: str, parameters: int, vocabulary: Json, **more: Json
) -> str:
    """Return the source of a program with the parts that `model`, which is resolved, has.

    `more` has other values that its template reads.
    """
    source = (
        _templates()
        .get_template(template)
        .render(
            c=model,
            biased=BIASED[model.biases],
            title=re.sub(r"[^\w .-]", "", title),
            parameters=f"{parameters:,}",
            vocabulary=vocabulary,
            rope_kept=ROPE_KEPT,
            rope_stretched=ROPE_STRETCHED,
            **more,
        )
    )
    return re.sub(r"\n{4,}", "\n\n\n", source)


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """Return the parameters in float32 by their path, such as `layer_0.attention.query`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(key.key for key in path): np.asarray(x, np.float32) for path, x in leaves}
