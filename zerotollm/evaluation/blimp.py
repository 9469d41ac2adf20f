"""What others measured on BLiMP (arXiv:1912.00582), to stand beside a model of one's own."""

MODELS = ("n-gram", "LSTM", "T-XL", "GPT-2")
"""The models of the paper's table 3: a 5-gram model, an LSTM, Transformer-XL and GPT-2 large."""

PUBLISHED = {
    "anaphor_agreement": (0.479, 0.917, 0.941, 0.993),
    "argument_structure": (0.719, 0.732, 0.722, 0.818),
    "binding": (0.644, 0.735, 0.747, 0.809),
    "control_raising": (0.685, 0.670, 0.715, 0.819),
    "determiner_noun_agreement": (0.701, 0.854, 0.830, 0.958),
    "ellipsis": (0.369, 0.676, 0.772, 0.893),
    "filler_gap_dependency": (0.602, 0.739, 0.666, 0.813),
    "irregular_forms": (0.795, 0.890, 0.781, 0.919),
    "island_effects": (0.572, 0.466, 0.483, 0.727),
    "npi_licensing": (0.455, 0.517, 0.552, 0.768),
    "quantifiers": (0.535, 0.645, 0.693, 0.790),
    "subject_verb_agreement": (0.603, 0.801, 0.759, 0.864),
    "all": (0.612, 0.698, 0.696, 0.830),
}
"""Phenomenon -> accuracy of each of `MODELS`: the mean over its paradigms, from the files of the paper's authors."""

SAME_AS = {"s-selection": "argument_structure"}
"""Names in BLiMP's files -> the phenomenon of the paper's table."""


def phenomenon(term: str) -> str:
    """Return the phenomenon of the paper's table for the "linguistics_term" of a line of BLiMP."""
    return SAME_AS.get(term, term)
