"""The questions with each answer's numbers, as a Markdown table: a pure function of explain.json."""

from collections.abc import Mapping
from typing import Any

from zerotollm.explain.statistics import Estimate


def questions_markdown(result: Mapping[str, Any]) -> str:
    """A row for each question that was answered; intervals are 95 % ones."""
    text, run = result["explanation"], result.get("study", {})
    rows = (
        ("Why is the text split this way?", _tokens(text)),
        ("How many dimensions has an embedding?", _embedding(text)),
        ("Are vectors closer when tokens are used together?", _meaning(run)),
        ("Embedding and layers: why two?", _layers(run or text)),
        ("How is the next token predicted?", _prediction(text)),
        ("How does attention stay focused?", _attention(text)),
        ("Meaningful or only grammatical?", _generation(run)),
        ("What did it learn, when?", _learning(run)),
    )
    lines = [f"| {question} | {answer} |" for question, answer in rows if answer]
    step = f"step {result['step']:,}"
    return "\n".join([f"| question | numbers ({step}) |", "|---|---|", *lines])


def _estimate(numbers: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """An Estimate that went through JSON."""
    return str(Estimate(*(scale * numbers[key] for key in ("value", "low", "high"))))


def _at(numbers: Mapping[str, Any], place: int) -> dict[str, Any]:
    return {key: values[place] for key, values in numbers.items()}


def _tokens(text: Mapping[str, Any]) -> str:
    tokens = text["tokens"]
    pieces = len(tokens["pieces"])
    said = f"{tokens['num_bytes']} bytes are {pieces} tokens"
    if tokens["order"].get("value") is not None:
        said += (
            f"; counts of merged pairs against the order of merging: Spearman {tokens['order']['value']:.4f}"
        )
    return said


def _embedding(text: Mapping[str, Any]) -> str:
    geometry = text["embedding"]["geometry"]
    return (
        f"as if {_estimate(geometry['participation'])} dimensions were equally used; the first 3 components hold "
        f"{_estimate(geometry['first_three'], 100)} % of the variance, of random vectors' "
        f"{100 * geometry['chance_three']:.1f} %"
    )


def _meaning(run: Mapping[str, Any]) -> str:
    if "meaning" not in run:
        return ""
    found = run["meaning"]
    return (
        f"cosine with shared contexts {_estimate(found['contexts'][-1])}, with standing in the same sentence "
        f"{_estimate(found['together'][-1])} (Spearman); at step {found['steps_Y'][0]} "
        f"{found['contexts'][0]['value']:.2f} and {found['together'][0]['value']:.2f}"
    )


def _layers(answers: Mapping[str, Any]) -> str:
    if "layers" not in answers:
        return ""
    found = answers["layers"]
    return (
        f"cosine of a token at two places {_estimate(_at(found['self_similarity_M'], 0))} in the embedding, "
        f"{_estimate(_at(found['self_similarity_M'], -1))} after the last layer, where "
        f"{100 * found['context_M'][-1]:.0f} % of the variance is context"
    )


def _prediction(text: Mapping[str, Any]) -> str:
    if "calibration" not in text:
        return ""
    found, gain = text["calibration"], text["positions"]["gain"]
    return (
        f"{100 * found['mean_confidence']:.1f} % sure and {100 * found['mean_accuracy']:.1f} % right of its likeliest "
        f"token, calibration error {found['error']:.3f} (chance {found['chance_error']:.3f}); the end of a window is "
        f"predicted better than its beginning by {_estimate(gain)} nats"
    )


def _attention(text: Mapping[str, Any]) -> str:
    if "ablation" not in text:
        return ""
    from zerotollm.explain.ablation import MATTERS

    rises = text["ablation"]["rise_LH"]
    lows = [low for row in rises["low"] for low in row]
    gain = text["heads"].get("repetition_gain")
    repeating = f"; repeating random tokens saves {_estimate(gain)} nats" if gain else ""
    return (
        f"taken out alone, {sum(x > MATTERS for x in lows)} of {len(lows)} heads surely raise the loss by more than "
        f"{MATTERS} nats{repeating}"
    )


def _generation(run: Mapping[str, Any]) -> str:
    if "generation" not in run:
        return ""
    own, real = run["generation"]["own"], run["generation"]["real"]
    of_what = (
        "a translation is better predicted from its own source"
        if run["generation"].get("sources")
        else "the second half of a text is better predicted after its own first half"
    )
    return (
        f"longest copied span {_estimate(own['longest_copy'])} tokens, of real text {_estimate(real['longest_copy'])}; "
        f"bits per byte {_estimate(own['bits_per_byte'])} and {_estimate(real['bits_per_byte'])}; {of_what} by "
        f"{_estimate(own['coherence'])} and {_estimate(real['coherence'])} nats"
    )


def _learning(run: Mapping[str, Any]) -> str:
    if "learning" not in run:
        return ""
    found = run["learning"]
    (first, *_, last), names = found["band_YG"]["value"], found["band_names"]
    steps = found["steps_Y"]
    went = [
        f"{names[g]} {first[g]:.2f} to {last[g]:.2f}" for g in (0, len(names) - 1) if first[g] is not None
    ]
    return f"loss from step {steps[0]} to {steps[-1]:,}, nats: {', '.join(went)}"
