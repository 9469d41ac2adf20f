"""Tricks of 2024 to 2026, one file each, with functions that replace built-in ones.

`zerotollm.own_code` imports these, for the variants of `experiments/recent_tricks.py`. To train with one alone, copy
its file to a folder of experiments and add a function `experiment()`.
"""
