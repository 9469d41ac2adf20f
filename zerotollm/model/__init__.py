"""The networks: a decoder-only transformer and an encoder-decoder, from their configuration to logits and KV caches.

Everything above data may import it; it imports no data, no training and no experiment.
"""
