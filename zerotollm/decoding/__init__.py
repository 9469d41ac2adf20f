"""Write text with a model: sampling, beam search, translation, and continuous batching for a server.

Components, run, serving, planning and actions may import it; it imports data and model, but no training.
"""
