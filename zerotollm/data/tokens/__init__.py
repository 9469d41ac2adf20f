"""Tokenizers, and the tokens of corpora: prepared once, then read in place.

Reads `zerotollm.data.sources`. Whoever needs a tokenizer or tokens may import it; `data.batches` builds on it.
"""
