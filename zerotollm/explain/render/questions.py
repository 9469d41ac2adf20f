"""The questions, in the order of the notes, and which answers belong to each."""

from typing import NamedTuple


class Question(NamedTuple):
    """A question, with the fields of `Explanation` and those of `RunExplanation` that answer it."""

    id: str
    title: str
    lesson: str
    """what the thing is; a chapter of the documentation's tour says the same"""
    figures: str
    """how to read the figures of the report"""
    answers: tuple[str, ...] = ()
    run_answers: tuple[str, ...] = ()


UNITS = (
    "A loss is in nats: minus the natural logarithm of the probability that the model gave to the token that came "
    "next. Bits per byte are the same in bits, for each byte of text instead of each token; 1 nat is 1.44 bits."
)
"""What the units of all answers are, to read before the first."""
ATTENTION = (
    *("encoder_attention", "encoder_heads", "encoder_ablation"),
    *("attention", "heads", "ablation"),
    *("alignment", "cross_heads", "cross_ablation"),
)
QUESTIONS = (
    Question(
        "tokens",
        "Why is the text split this way? Is it by frequency?",
        "Frequent words are one token, and rare words are several. Byte-pair encoding starts with single "
        "characters and merges the most frequent pair of neighbours, again and again.",
        "The dots are the tokens and merges of your text, among all of them.",
        ("tokens",),
        ("tokenizers",),
    ),
    Question(
        "embedding",
        "What is an embedding, how many dimensions are there, is it 2D or 3D?",
        "An embedding is a vector of numbers for each token, a row of a table that training fills in. "
        "There are as many dimensions as numbers in a row.",
        "Points that are close on a map need not be close in all dimensions; the curve says how much a map leaves out.",
        ("embedding",),
    ),
    Question(
        "meaning",
        "How is meaning determined? Are vectors closer when tokens are used in the same sentence?",
        "Two tokens that occur in the same contexts get the same gradients, so their vectors move in the "
        "same direction. To the model, meaning is use.",
        "The curves show over the course of training how well closeness agrees with use in the same contexts, and with "
        "use in the same sentence.",
        (),
        ("meaning",),
    ),
    Question(
        "layers",
        "What is the difference between the encoding layer and the embedding layer; why two?",
        "The embedding gives a token one vector, the same in every sentence. The layers after it give it a "
        "new vector at each place, which contains its context.",
        "Read each figure from the embedding on the left to the last layer on the right.",
        ("encoder_layers", "layers"),
        ("layers",),
    ),
    Question(
        "prediction",
        "How is the next token predicted; what is the math?",
        "The output layer, called the head, has one column for each token of the vocabulary. The vector of the last "
        "token is multiplied with each column. Softmax turns these products into probabilities, and one token is "
        "drawn.",
        "The logit lens shows what the model would say next if a layer were its last.",
        ("prediction", "calibration", "positions"),
    ),
    Question(
        "attention",
        "How does attention stay focused?",
        "Every token has a query, which says what it looks for, and a key, which says what it offers. Softmax turns "
        "the products of a query with its own and all earlier keys into weights, and the output is the weighted mean "
        "of the values.",
        "In a map each row is a token, and its colors sum to 1.",
        ATTENTION,
    ),
    Question(
        "generation",
        "Does it generate meaningful output or only grammatical output?",
        "A language model writes one token after another, and sees no more than its context. "
        "So its sentences can be well formed and still not follow from each other.",
        "Its own texts stand beside real ones of the same length.",
        (),
        ("generation",),
    ),
    Question(
        "sources",
        "Where did it get that?",
        "A model keeps no text, only numbers that training changed. A span that it writes may stand in the training "
        "text because it was copied, or because anybody would write it there.",
        "Each bar is a token, as high as its span is long. Real text, which copies nothing, rarely has a span above "
        "the line.",
        ("sources",),
    ),
    Question(
        "memorization",
        "Is it memorized or learned?",
        "A model that only learned the language predicts new text as well as the text that it was trained on. "
        "If it predicts its training text better, it memorized a part of it.",
        "The distance from the first dot to the second is what it memorized; from the second to the third, what it "
        "learned.",
        ("memorization",),
    ),
    Question(
        "grammar",
        "In which order does it learn grammar?",
        "A rule of grammar is tested with pairs of sentences that differ in one point, of which one is right. A "
        "model that knows the rule gives the right one the higher probability, whatever the words are.",
        "Models without training lie in the gray band. A rule whose curve rises above it was learned.",
        (),
        ("grammar",),
    ),
    Question(
        "learning",
        "What did it learn, when?",
        "Training raises the probability of the tokens that really came next, a little at a time. The model keeps "
        "whatever makes the loss smaller.",
        "A curve that falls early was learned early.",
        (),
        ("learning",),
    ),
)
