"""The questions, in the order of the notes, and which answers belong to each."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question, with the fields of `Explanation` and those of `RunExplanation` that answer it."""

    id: str
    title: str
    answers: tuple[str, ...] = ()
    run_answers: tuple[str, ...] = ()


ATTENTION = (
    *("encoder_attention", "encoder_heads", "encoder_ablation"),
    *("attention", "heads", "ablation"),
    *("alignment", "cross_heads", "cross_ablation"),
)
EMBEDDING = "What is an embedding, how many dimensions are there, is it 2D or 3D?"
MEANING = "How is meaning determined? Are vectors closer when tokens are used in the same sentence?"
LAYERS = "What is the difference between the encoding layer and the embedding layer; why two?"
PREDICTION = "How is the next token predicted; what is the math?"
GENERATION = "Does it generate meaningful output or only grammatical output?"
QUESTIONS = (
    Question("tokens", "Why is the text split this way? Is it by frequency?", ("tokens",), ("tokenizers",)),
    Question("embedding", EMBEDDING, ("embedding",)),
    Question("meaning", MEANING, (), ("meaning",)),
    Question("layers", LAYERS, ("encoder_layers", "layers"), ("layers",)),
    Question("prediction", PREDICTION, ("prediction", "calibration", "positions")),
    Question("attention", "How does attention stay focused?", ATTENTION),
    Question("generation", GENERATION, (), ("generation",)),
    Question("learning", "What did it learn, when?", (), ("learning",)),
)
