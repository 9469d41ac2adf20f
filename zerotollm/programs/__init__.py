"""A trained model as a program of its own: in NumPy, in C, or as a page that runs it.

Actions may import it; it imports model and data.
"""
