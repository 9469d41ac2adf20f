"""The questions, in the order of the notes, and which answers belong to each."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question with the fields of `Explanation` and of `RunExplanation` that answer it."""

    id: str
    short: str
    title: str
    answers: tuple[str, ...] = ()
    run_answers: tuple[str, ...] = ()


QUESTIONS = (
    Question(
        "tokens",
        "Tokens",
        "Why is the text split this way? Is it by frequency?",
        ("tokens",),
        ("tokenizers",),
    ),
    Question(
        "embedding",
        "Embedding",
        "What is an embedding, how many dimensions are there, is it 2D or 3D?",
        ("embedding",),
    ),
    Question(
        "meaning",
        "Meaning",
        "How is meaning determined? Are vectors closer when tokens are used in the same sentence?",
        (),
        ("meaning",),
    ),
    Question(
        "layers",
        "Layers",
        "What is the difference between the encoding layer and the embedding layer; why two?",
        ("encoder_layers", "layers"),
        ("layers",),
    ),
    Question(
        "prediction",
        "Prediction",
        "How is the next token predicted; what is the math?",
        ("prediction", "calibration", "positions"),
    ),
    Question(
        "attention",
        "Attention",
        "How does attention stay focused?",
        (
            *("encoder_attention", "encoder_heads", "encoder_ablation"),
            *("attention", "heads", "ablation"),
            *("alignment", "cross_heads", "cross_ablation"),
        ),
    ),
    Question(
        "generation",
        "Writing",
        "Does it generate meaningful output or only grammatical output?",
        (),
        ("generation",),
    ),
    Question("learning", "Learning", "What did it learn, when?", (), ("learning",)),
)
