"""Data: sources (text) -> tokens (ids, cached) -> batches (arrays) -> feed.py (what a training loop reads).

Imports point one way along these arrows. `config.py` holds the options and must stay light.
May be imported by training and everything above it; imports errors, suggest and host.
"""
