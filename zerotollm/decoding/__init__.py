"""Decoding: sampling, beam search, continuous batching, and the text around them.

Sessions, actions, serving and evaluation import it; it imports model, sharding and data.tokens.
"""
