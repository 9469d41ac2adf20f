"""The models, a decoder and an encoder-decoder: configuration, layers, and attention that is never held whole.

Everything above may import it; it imports sharding and no data.
"""
