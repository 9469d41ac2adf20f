"""Checkpoint folders of the `transformers` library: read, written, and rebuilt as PyTorch models for comparison.

One file a family (llama, gpt2, marian, ...) holds a table that serves both directions.
Actions, sessions and studies may import it; it imports model, data and training.
"""
