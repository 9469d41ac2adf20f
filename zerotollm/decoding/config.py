"""How text is drawn from a model. No heavy imports: the command line reads this file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """Which continuation is drawn."""

    prompt: str = ""
    """text to continue, empty: start a new document; encoder-decoder: text to translate, empty: in training the first
    validation source"""
    max_tokens: int = 100
    """most tokens to add; encoder-decoder: so many more than the source has"""
    temperature: float = 0.8
    """divides the logits; 0: greedy"""
    top_k: int = 0
    """keep only the k likeliest tokens (arXiv:1805.04833); 0: all"""
    top_p: float = 1.0
    """keep the smallest set with this much probability (arXiv:1904.09751)"""
    min_p: float = 0.0
    """keep tokens at least this share as likely as the likeliest (arXiv:2407.01082)"""
    seed: int = 0
    """same seed, same text"""
    beam_size: int = 4
    """encoder-decoder only, which never draws: hypotheses followed (arXiv:1706.03762, section 6.1); 1: greedy"""
    length_penalty: float = 0.6
    """encoder-decoder only: alpha of arXiv:1609.08144, equation 14; 0: none, higher: longer"""
    patience: float = 1.0
    """encoder-decoder only: a search ends when so many times beam_size translations are finished (arXiv:2204.05424);
    higher: longer, and slower"""
    n_best: int = 1
    """encoder-decoder only: translations that are shown, with their scores where they are several"""
