"""Computation on several devices and processes. Models, training and actions import from here.

Nothing here knows of models or experiments.
"""
