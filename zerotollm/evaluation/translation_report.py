"""Translations that train, evaluate and ablate share: the sample's source text, and a split translated and scored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zerotollm import run_directory
from zerotollm.data.sources.pairs import Pair, usable_pairs
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.translate import translate_texts
from zerotollm.evaluation.bleu import corpus_scores
from zerotollm.evaluation.classification import Scores
from zerotollm.experiment import Experiment, translates
from zerotollm.model.build import Net, Params


def with_prompt(experiment: Experiment, run_dir: Path) -> Experiment:
    """Return the experiment with a source text for its samples.

    Where it has none, take that of the run, or the first short validation source: one with fewer bytes than the context
    has tokens. Raises as `open_parallel` does.
    """
    if experiment.sample.prompt.strip() or not translates(experiment):
        return experiment
    earlier = run_directory.read_experiment(run_dir) if (run_dir / run_directory.CONFIG).exists() else None
    if earlier and replace(earlier.data, dir="") == replace(experiment.data, dir=""):
        prompt = earlier.sample.prompt
    else:
        sources = [pair.source.strip() for pair in _pairs(experiment, "validation")]
        short = (source for source in sources if len(source.encode()) < experiment.data.context)
        prompt = next(short, min(sources, key=len, default=""))
    return replace(experiment, sample=replace(experiment.sample, prompt=prompt))


def translate_split(
    experiment: Experiment,
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    split: str,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Scores, str]:
    """Translate and score every pair of the split that has two sides, whatever its length.

    Returns the scores and a tab-separated table: id, source, reference, translation and score. The scores are those of
    `corpus_scores`, `pairs` and `beam_size`. Where the model truncates sources, they include the number of truncated
    texts, `cut_texts`, and of unread tokens, `cut_tokens`.
    """
    pairs = _pairs(experiment, split)
    cut: list[int] = []
    translations = translate_texts(
        params,
        net,
        tokenizer,
        [pair.source for pair in pairs],
        experiment.sample,
        lambda number: say(f"{number:,} of {len(pairs):,} translated"),
        lambda texts, tokens: cut.extend((texts, tokens)),
    )
    best = [candidates[0] for candidates in translations]
    lines = ["id\tsource\treference\ttranslation\tscore"]
    for pair, (text, score) in zip(pairs, best, strict=True):
        sides = (" ".join(side.split()) for side in (pair.id, pair.source, pair.target, text))
        lines.append("\t".join([*sides, f"{score:.4f}"]))
    scores: Scores = dict(corpus_scores([text for text, _ in best], [pair.target for pair in pairs]))
    beam_size = experiment.sample.beam_size if net.config.encoder_layers else 1
    scores |= {"pairs": len(pairs), "beam_size": beam_size}
    if cut:
        scores["cut_texts"], scores["cut_tokens"] = cut
    return scores, "\n".join(lines) + "\n"


def not_read(scores: Scores) -> list[tuple[str, str]]:
    """Return a table row that counts truncated texts and unread tokens, or no row where there are none."""
    if not scores.get("cut_texts"):
        return []
    tokens, texts = scores["cut_tokens"], scores["cut_texts"]
    return [("not read", f"{tokens:,} tokens, of {texts:,} texts that are too long")]


def _pairs(experiment: Experiment, split: str) -> list[Pair]:
    return usable_pairs(open_parallel(experiment.data).splits[split], split)[0]
