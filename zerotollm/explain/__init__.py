"""One file for each question about a model: its measurements, its answer in a sentence, and its picture.

`zerotollm.run` and the actions explain and report import from here.
"""
