"""ZeroToLLM: from raw text to your own language model, understanding every step by measuring it.

>>> import zerotollm
>>> run = zerotollm.load("runs/base")
>>> run.generate("In the beginning")
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
_LAZY = {"Run": "run", "ExplainableRun": "explainable_run", "load": "explainable_run"}


def __getattr__(name: str) -> Any:
    """Import `load` and the classes of a run at their first use: `import zerotollm` itself does not import jax."""
    if name in _LAZY:
        return getattr(import_module(f"zerotollm.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
