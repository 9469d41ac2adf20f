"""The questions with each answer's numbers, as a Markdown table: a pure function of the answers."""

from typing import TYPE_CHECKING

import numpy as np

from zerotollm.explain.ablation import MATTERS
from zerotollm.explain.estimates import Estimate

if TYPE_CHECKING:
    from zerotollm.explain.ablation import Ablation
    from zerotollm.explain.attention import Heads
    from zerotollm.explain.calibration import Calibration, LossByPosition
    from zerotollm.explain.embeddings import Embeddings
    from zerotollm.explain.explanation import Explanation, RunExplanation
    from zerotollm.explain.generation import Generation
    from zerotollm.explain.layers import Layers
    from zerotollm.explain.learning import Learning
    from zerotollm.explain.meaning import Meaning
    from zerotollm.explain.tokenization import Tokenization


def questions_markdown(step: int, text: "Explanation", run: "RunExplanation | None" = None) -> str:
    """A row for each question that was answered; intervals are 95 % ones.

    Of the answers themselves, not of `explain.json`, which leaves long arrays out.
    """
    layers = text.layers if run is None else run.layers or text.layers
    rows = (
        ("Why is the text split this way?", _tokens(text.tokens)),
        ("How many dimensions has an embedding?", _embedding(text.embedding)),
        ("Are vectors closer when tokens are used together?", run and run.meaning and _meaning(run.meaning)),
        ("Embedding and layers: why two?", layers and _layers(layers)),
        (
            "How is the next token predicted?",
            text.calibration and text.positions and _prediction(text.calibration, text.positions),
        ),
        (
            "How does attention stay focused?",
            text.ablation and text.heads and _attention(text.ablation, text.heads),
        ),
        ("Meaningful or only grammatical?", run and run.generation and _generation(run.generation)),
        ("What did it learn, when?", run and run.learning and _learning(run.learning)),
    )
    lines = [f"| {question} | {answer} |" for question, answer in rows if answer]
    return "\n".join([f"| question | numbers (step {step:,}) |", "|---|---|", *lines])


def _at(estimate: Estimate, *place: int) -> Estimate:
    return Estimate(*(float(x[place]) for x in estimate))


def _tokens(tokens: "Tokenization") -> str:
    said = f"{tokens.num_bytes} bytes are {len(tokens.pieces)} tokens"
    if np.isfinite(tokens.order.value):
        said += f"; counts of merged pairs against the order of merging: Spearman {tokens.order.value:.4f}"
    return said


def _embedding(embedding: "Embeddings") -> str:
    geometry = embedding.geometry
    return (
        f"as if {geometry.participation} dimensions were equally used; the first 3 components hold "
        f"{Estimate(*(100 * x for x in geometry.first_three))} % of the variance, of random vectors' "
        f"{100 * geometry.chance_three:.1f} %"
    )


def _meaning(found: "Meaning") -> str:
    return (
        f"cosine with shared contexts {found.contexts[-1]}, with standing in the same sentence {found.together[-1]} "
        f"(Spearman); at step {found.steps_Y[0]} {found.contexts[0].value:.2f} and {found.together[0].value:.2f}"
    )


def _layers(found: "Layers") -> str:
    return (
        f"cosine of a token at two places {_at(found.self_similarity_M, 0)} in the embedding, "
        f"{_at(found.self_similarity_M, -1)} after the last layer, {found.own_similarity[-1]:.2f} above that of "
        f"any two tokens (fresh parameters {found.fresh_similarity:.2f}); there {100 * found.context_M[-1]:.0f} % of "
        f"the variance is context (fresh {100 * found.fresh_context:.0f} %)"
    )


def _prediction(found: "Calibration", positions: "LossByPosition") -> str:
    return (
        f"{100 * found.mean_confidence:.1f} % sure and {100 * found.mean_accuracy:.1f} % right of its likeliest "
        f"token, calibration error {found.error:.3f} (chance {found.chance_error:.3f}); loss at the beginning of a "
        f"{positions.of} minus that at its end: {positions.gain} nats"
    )


def _attention(ablation: "Ablation", heads: "Heads") -> str:
    gain, count = heads.repetition_gain, ablation.rise_LH.value.size
    repeating = "" if gain is None else f"; gain by repeating random tokens {gain} nats"
    return (
        f"taken out alone, {ablation.shown().matters_LH.sum()} of {count} heads are shown to raise the loss by more "
        f"than {MATTERS} nats, {ablation.shown(mean=True).matters_LH.sum()} with their mean output in their place "
        f"(Holm){repeating}"
    )


def _generation(found: "Generation") -> str:
    of_what = (
        "a translation is better predicted from its own source"
        if found.sources
        else "the second half of a text is better predicted after its own first half"
    )

    def less(field: str) -> str:
        difference = getattr(found.difference, field)
        return f" (difference {difference})" if np.isfinite(difference.value) else ""

    texts = (
        f"{name} {getattr(found.own, field)}{unit}, of real text {getattr(found.real, field)}{less(field)}"
        for name, field, unit in (
            ("longest copied span", "longest_copy", " tokens"),
            ("bits per byte", "bits_per_byte", ""),
            (f"{of_what} by", "coherence", " nats"),
        )
    )
    return "; ".join(texts)


def _learning(found: "Learning") -> str:
    value, names = found.band_YG.value, found.band_names
    went = [
        f"{names[g]} {value[0, g]:.2f} to {value[-1, g]:.2f}"
        for g in (0, len(names) - 1)
        if value[0, g] == value[0, g]
    ]
    return f"loss from step {found.steps_Y[0]} to {found.steps_Y[-1]:,}, nats: {', '.join(went)}"
