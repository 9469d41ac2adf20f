"""Pictures: marks and panels as values, their colors, and the two libraries that draw them.

An answer of `zerotollm.explain` draws itself with these. Reports and studies import from here too.
"""
