"""Experiments, one file each: they import each other, and `zerotollm.catalog` imports the one that is asked for."""
