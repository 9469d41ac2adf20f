"""The scaling law L(N, D) = E + A / N^alpha + B / D^beta (Chinchilla, arXiv:2203.15556, equation 2).

N is `zerotollm.planning.flops.counted_parameters`; D counts the tokens trained on, repeated ones too.
"""

from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True)
class Law:
    """The constants, for N in parameters and D in tokens; E, A and B in the unit of the loss."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @overload
    def __call__(self, parameters: float, tokens: float) -> float: ...
    @overload
    def __call__(self, parameters: float | np.ndarray, tokens: float | np.ndarray) -> np.ndarray: ...
    def __call__(self, parameters: float | np.ndarray, tokens: float | np.ndarray) -> float | np.ndarray:
        """Return the loss."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def exponent(self) -> float:
        """a in N ~ C^a for the best size at compute C; the best D then grows as C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)
