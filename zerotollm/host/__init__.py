"""The process and its machine: memory, GPU settings, signals, atomic files. Any module may import from here.

Nothing here knows of models or experiments.
"""
