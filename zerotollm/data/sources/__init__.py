"""Sources: the corpora, and how each becomes documents, pairs or examples in three splits.

Text that a source returns never changes: tokenizers and cached tokens are keyed by it.
May be imported by data/tokens, data/feed.py and everything above data; imports nothing of them.
"""
