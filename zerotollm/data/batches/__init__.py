"""Batches made from tokens: `batch = batches[step]`, a pure function of (seed, step).

Reads `zerotollm.data.tokens`. `data.feed` imports it, and whoever needs batches of tokens at hand.
"""
