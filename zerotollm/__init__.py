"""ZeroToLLM: from raw text to your own language model, understanding every step by measuring it.

>>> import zerotollm
>>> run = zerotollm.load("runs/base")
>>> run.generate("In the beginning")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerotollm.run import Run, load

__all__ = ["Run", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` and `Run`, imported when they are first used: `import zerotollm` itself costs nothing."""
    if name in __all__:
        from zerotollm import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
