"""Predict memory, speed and communication of a train step before it runs, for this device, another one or a mesh.

Sessions, studies and actions may import it; it imports components, decoding, model, sharding and training.
"""
