"""What train, evaluate and ablate share: what a sample translates, and a split translated and scored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from zerotollm import run_directory
from zerotollm.components import model_of
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.experiment import Experiment, translates
from zerotollm.model.build import Net, Params

__all__ = ["not_read", "translate_split", "translates", "validation_scores", "with_prompt"]


def with_prompt(experiment: Experiment, run_dir: Path) -> Experiment:
    """The experiment with a text to translate for samples. Where it has none that is the run's, or else the first
    validation source with fewer bytes than the context has tokens. Raises as opening the pairs does."""
    if experiment.sample.prompt.strip() or not translates(experiment):
        return experiment
    from zerotollm.data.sources.pairs import kept
    from zerotollm.data.sources.parallel import open_parallel

    then = run_directory.read_experiment(run_dir) if (run_dir / run_directory.CONFIG).exists() else None
    if then and replace(then.data, dir="") == replace(experiment.data, dir=""):
        prompt = then.sample.prompt
    else:
        pairs, _ = kept(open_parallel(experiment.data).splits["validation"], "validation")
        sources = [pair.source.strip() for pair in pairs]
        short = (source for source in sources if len(source.encode()) < experiment.data.context)
        prompt = next(short, min(sources, key=len, default=""))
    return replace(experiment, sample=replace(experiment.sample, prompt=prompt))


class Trained(NamedTuple):
    """What is needed of a run."""

    params: Params
    net: Net
    tokenizer: AnyTokenizer


def translate_split(
    experiment: Experiment, run: Trained, split: str, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], str]:
    """Translates every pair of the split that has two sides, whatever its length, and scores all of them.

    Returns what `zerotollm.evaluation.bleu.corpus_scores` does, `pairs`, `beam_size` and, where sources are
    longer than the model reads, how many are (`cut_texts`) and how many of their tokens are not read (`cut_tokens`);
    and the lines of a table, tab-separated: id, source, reference, translation and score.
    """
    from zerotollm.data.sources.pairs import kept
    from zerotollm.data.sources.parallel import open_parallel
    from zerotollm.decoding.translate import translate_texts
    from zerotollm.evaluation.bleu import corpus_scores

    pairs, _ = kept(open_parallel(experiment.data).splits[split], split)
    cut: list[int] = []
    found = translate_texts(
        run.params,
        run.net,
        run.tokenizer,
        [pair.source for pair in pairs],
        experiment.sample,
        lambda number: say(f"{number:,} of {len(pairs):,} translated"),
        lambda texts, tokens: cut.extend((texts, tokens)),
    )
    best = [translations[0] for translations in found]
    lines = ["id\tsource\treference\ttranslation\tscore"]
    for pair, (text, score) in zip(pairs, best, strict=True):
        sides = (" ".join(side.split()) for side in (pair.id, pair.source, pair.target, text))
        lines.append("\t".join([*sides, f"{score:.4f}"]))
    scores = corpus_scores([text for text, _ in best], [pair.target for pair in pairs])
    greedy = experiment.model.architecture == "decoder"
    scores |= {"pairs": len(pairs), "beam_size": 1 if greedy else experiment.sample.beam_size}
    if cut:
        scores["cut_texts"], scores["cut_tokens"] = cut
    return scores, "\n".join(lines) + "\n"


def validation_scores(programs: Any, params: Any) -> dict[str, Any]:
    """`translate_split` of the validation split, scores alone, with parameters trained by
    `zerotollm.session.train_in_memory.fit`."""
    run = Trained(params, model_of(programs.experiment), programs.feed.tokenizer)
    return translate_split(programs.experiment, run, "validation")[0]


def not_read(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """A row that says what was cut of texts that are longer than the model reads, where that is anything."""
    if not scores.get("cut_texts"):
        return []
    return [
        ("not read", f"{scores['cut_tokens']:,} tokens, of {scores['cut_texts']:,} texts that are too long")
    ]
