"""Ablation suites and scaling ladders: training many runs in memory, their records, tables, laws and figures.

Only actions and experiment files import from here; the command line imports `suite` alone, which is light.
"""
