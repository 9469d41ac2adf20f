"""A picture of every answer: one function each, from its numbers alone."""

from typing import Any

from zerotollm.explain.figures.picture import Picture


def draw(answer: Any) -> Picture:
    """The picture of an answer of `zerotollm.explain`. Raises TypeError for anything else."""
    from zerotollm.explain.figures import curves, text

    functions = {
        "Tokenization": text.tokenization,
        "TokenizerComparison": text.tokenizers,
        "Embeddings": text.embeddings,
        "Meaning": text.meaning,
        "Generation": curves.generation,
        "Learning": curves.learning,
    }
    name = type(answer).__name__
    if name not in functions:
        raise TypeError(f"there is no picture of {name}: one of {', '.join(functions)}")
    return functions[name](answer)
