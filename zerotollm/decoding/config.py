"""Options of sampling and beam search. No heavy imports: the command line reads this file."""

from dataclasses import dataclass, field
from typing import Annotated

from zerotollm.fields import ADDED, Bounds, Fraction, PositiveInt, Seed


@dataclass(frozen=True)
class SamplingConfig:
    """Parameters of sampling and beam search."""

    prompt: str = ""
    """text to continue, empty: start a new document; encoder-decoder: text to translate, empty: while training, the
    first validation source"""
    max_tokens: PositiveInt = 100
    """most tokens to generate; encoder-decoder: beyond the length of the source"""
    temperature: float = 0.8
    """divides the logits; 0: greedy"""
    top_k: int = 0
    """sample from the k most likely tokens (arXiv:1805.04833); 0: from all"""
    top_p: Annotated[float, Bounds(at_most=1, above=0)] = 1.0
    """sample from the smallest set of tokens with at least this probability (arXiv:1904.09751)"""
    min_p: Fraction = 0.0
    """drop tokens below this fraction of the highest probability (arXiv:2407.01082)"""
    seed: Seed = 0
    """the same seed gives the same text"""
    beam_size: PositiveInt = 4
    """encoder-decoder, which never samples: hypotheses in beam search (arXiv:1706.03762, section 6.1); 1: greedy"""
    length_penalty: float = 0.6
    """encoder-decoder: alpha of arXiv:1609.08144, equation 14; 0: none, higher: longer"""
    patience: Annotated[float, Bounds(at_least=1)] = field(default=1.0, metadata=ADDED)
    """encoder-decoder: stop the search at patience x beam_size finished translations (arXiv:2204.05424); higher:
    longer and slower"""
    n_best: PositiveInt = 1
    """encoder-decoder: translations to show, with their scores if there are several"""
