"""Answers as a Markdown table: a row for each question, with the most important numbers and their 95 % intervals."""

import numpy as np

from zerotollm.explain.ablation import MATTERS, Ablation
from zerotollm.explain.attention import Heads
from zerotollm.explain.calibration import Calibration, LossByPosition
from zerotollm.explain.embeddings import Embeddings
from zerotollm.explain.estimates import Estimate, mean_estimate
from zerotollm.explain.explanation import Explanation, RunExplanation
from zerotollm.explain.generation import Generation
from zerotollm.explain.grammar import Grammar
from zerotollm.explain.layers import Layers
from zerotollm.explain.learning import Learning
from zerotollm.explain.meaning import Meaning
from zerotollm.explain.memorization import Memorization
from zerotollm.explain.render.questions import QUESTIONS
from zerotollm.explain.sources import Sources
from zerotollm.explain.tokenization import Tokenization


def questions_markdown(step: int, text: Explanation, run: RunExplanation | None = None) -> str:
    """Return the table of the questions that are answered."""
    run = run or RunExplanation()
    layers = run.layers or text.layers
    cells = {
        "tokens": _tokens(text.tokens),
        "embedding": _embedding(text.embedding),
        "meaning": run.meaning and _meaning(run.meaning),
        "layers": layers and _layers(layers),
        "prediction": text.calibration and text.positions and _prediction(text.calibration, text.positions),
        "attention": text.ablation and text.heads and _attention(text.ablation, text.heads),
        "generation": run.generation and _generation(run.generation),
        "sources": text.sources and _sources(text.sources),
        "memorization": text.memorization and _memorization(text.memorization),
        "grammar": run.grammar and _grammar(run.grammar),
        "learning": run.learning and _learning(run.learning),
    }
    rows = [f"| {question.title} | {cells[question.id]} |" for question in QUESTIONS if cells[question.id]]
    return "\n".join([f"| question | numbers (step {step:,}) |", "|---|---|", *rows])


def _tokens(tokens: Tokenization) -> str:
    cell = f"{tokens.num_bytes} bytes are {len(tokens.pieces)} tokens"
    if np.isfinite(tokens.order.value):
        order = f"{tokens.order.value:.4f}"
        cell += f"; Spearman correlation of the order of merges with the counts of the merged pairs: {order}"
    return cell


def _embedding(embedding: Embeddings) -> str:
    geometry = embedding.geometry
    return (
        f"effective dimensions {geometry.participation}; variance in the first 3 principal components "
        f"{Estimate(*(100 * x for x in geometry.first_three))} %, of random vectors {100 * geometry.chance_three:.1f} %"
    )


def _meaning(meaning: Meaning) -> str:
    return (
        f"Spearman correlation of the cosine with shared contexts {meaning.contexts[-1]}, with the same sentence "
        f"{meaning.together[-1]}; at step {meaning.steps_Y[0]} {meaning.contexts[0].value:.2f} and "
        f"{meaning.together[0].value:.2f}"
    )


def _layers(layers: Layers) -> str:
    first, last = (Estimate(*(float(x[m]) for x in layers.self_similarity_M)) for m in (0, -1))
    return (
        f"cosine of a token's vectors at two positions {first} in the embedding, {last} after the last layer, there "
        f"{layers.own_similarity[-1]:.2f} above that of any two tokens (untrained {layers.fresh_similarity:.2f}) and "
        f"{100 * layers.context_M[-1]:.0f} % of the variance is context (untrained {100 * layers.fresh_context:.0f} %)"
    )


def _prediction(calibration: Calibration, positions: LossByPosition) -> str:
    return (
        f"confidence {100 * calibration.mean_confidence:.1f} % and accuracy {100 * calibration.mean_accuracy:.1f} % of "
        f"the likeliest token, calibration error {calibration.error:.3f} (by chance {calibration.chance_error:.3f}); "
        f"loss at the start of a {positions.of} minus that at its end: {positions.gain} nats"
    )


def _attention(ablation: Ablation, heads: Heads) -> str:
    gain, count = heads.repetition_gain, ablation.rise_LH.value.size
    return (
        f"of {count} heads, removed one at a time, {ablation.shown().matters_LH.sum()} raise the loss by more than "
        f"{MATTERS} nats, {ablation.shown(mean=True).matters_LH.sum()} if replaced by their mean output (Holm)"
        + ("" if gain is None else f"; loss saved on repeated random tokens {gain} nats")
    )


def _generation(generation: Generation) -> str:
    def measure(name: str, field: str, unit: str = "") -> str:
        own, real, difference = (
            getattr(measures, field) for measures in (generation.own, generation.real, generation.difference)
        )
        compared = f" (difference {difference})" if np.isfinite(difference.value) else ""
        return f"{name} {own}{unit}, of real text {real}{compared}"

    coherence = "a translation's own source" if generation.sources else "a text's own first half"
    return "; ".join(
        (
            measure("longest copied span", "longest_copy", " tokens"),
            measure("bits per byte", "bits_per_byte"),
            measure(f"loss saved by {coherence}", "coherence", " nats"),
        )
    )


def _sources(sources: Sources) -> str:
    span = sources.longest()
    cell = f"longest span in the training text {span.length if span else 0} of {len(sources.pieces)} tokens"
    if span and len(sources.real_K) > 1:
        cell += f", of held-out real text {mean_estimate(sources.real_K)} (p = {span.p_value:.3f})"
    return cell


def _memorization(memorization: Memorization) -> str:
    return (
        f"loss of training text {memorization.trained} nats, of held-out text {memorization.held_out}: difference "
        f"{memorization.gap}; gained over token frequencies on held-out text {memorization.learned}"
    )


def _grammar(grammar: Grammar) -> str:
    learned = grammar.learned()
    cell = f"{len(learned)} of {len(grammar.rules)} phenomena learned ({grammar.pairs:,} pairs)"
    return (
        f"{cell}: {', '.join(f'{rule.title} from step {rule.born:,}' for rule in learned)}"
        if learned
        else cell
    )


def _learning(learning: Learning) -> str:
    loss_YG, names = learning.band_YG.value, learning.band_names
    changes = [
        f"{names[g]} {loss_YG[0, g]:.2f} to {loss_YG[-1, g]:.2f}"
        for g in (0, len(names) - 1)
        if not np.isnan(loss_YG[0, g])
    ]
    return f"loss from step {learning.steps_Y[0]} to {learning.steps_Y[-1]:,}, nats: {', '.join(changes)}"
