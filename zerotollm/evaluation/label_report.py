"""Report of a model that labels texts: scores, those of a baseline, and the confusion matrix."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from zerotollm.data.feed import Feed
from zerotollm.data.sources.examples import open_examples
from zerotollm.evaluation.classification import Predictions, Scores, baseline_scores, label_scores
from zerotollm.evaluation.translation_report import not_read
from zerotollm.experiment import Experiment
from zerotollm.explain.figures.marks import Axis, Heat, Panel
from zerotollm.explain.figures.picture import Picture
from zerotollm.host.atomic_files import write_atomically


def label_report(
    experiment: Experiment, predictions: Predictions, feed: Feed, split: str, run_dir: Path
) -> Scores:
    """Return the scores of a split's predictions and write confusion-SPLIT.json, .png and .html.

    Beside `label_scores` they hold `baseline`, and `most_frequent`: the accuracy of always choosing the most frequent
    training label. If texts are longer than the context, `cut_texts` counts them, and `cut_tokens` the tokens cut off.
    """
    probabilities_NK, true_N = predictions
    scores = label_scores(true_N, probabilities_NK.argmax(axis=1), feed.labels)
    examples = open_examples(experiment.data, "label").splits
    splits = {
        name: [(example.parts[0].text, example.label) for example in examples[name]]
        for name in {"train", "validation", split}
    }
    most_frequent = Counter(label for _, label in splits["train"]).most_common(1)[0][0]
    scores["most_frequent"] = sum(label == most_frequent for _, label in splits[split]) / len(splits[split])
    if any(feed.cut.get(split, ())):
        scores["cut_texts"], scores["cut_tokens"] = feed.cut[split]
    scores["baseline"] = baseline_scores(splits, split, feed.labels)
    path = run_dir / f"confusion-{split}"
    title = f"{experiment.data.corpus}, {split}: accuracy {scores['accuracy']:.3f}, macro F1 {scores['macro_f1']:.3f}"
    write_atomically(path.with_suffix(".json"), json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    for suffix in (".png", ".html"):
        picture(scores, title).save(path.with_suffix(suffix))
    return scores


def rows(scores: Scores, run_dir: Path, split: str) -> list[tuple[str, str]]:
    """Return names and values of the scores, as texts for a table."""
    baseline = scores["baseline"]

    def both(scores: Scores) -> str:
        return f"accuracy {scores['accuracy']:.4f}, macro F1 {scores['macro_f1']:.4f}"

    if "accuracy" in baseline:
        baseline_row = f"{both(baseline)}: TF-IDF and logistic regression"
    else:
        baseline_row = f"not computed: {baseline['not_computed']}"
    return [
        ("labels", f"{both(scores)}, over {scores['examples']:,} texts"),
        *not_read(scores),
        ("baseline", baseline_row),
        ("most frequent label", f"accuracy {scores['most_frequent']:.4f}"),
        *(
            (f"  {name}", f"F1 {label['f1']:.4f}, {label['examples']:,} texts")
            for name, label in scores["by_label"].items()
        ),
        ("confusion matrix", f"{run_dir / f'confusion-{split}.png'}, .html, .json"),
    ]


def picture(scores: Scores, title: str) -> Picture:
    """Return the confusion matrix: rows are true labels, columns predicted ones, the color is the share of the row."""
    counts_KK, labels = np.array(scores["confusion"]), tuple(scores["labels"])
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    hover = tuple(
        tuple(
            f"{counts_KK[i, j]:,} of {true} predicted as {predicted}: {100 * shares_KK[i, j]:.1f} %"
            for j, predicted in enumerate(labels)
        )
        for i, true in enumerate(labels)
    )
    cells = tuple(tuple(f"{count:,}" if count else "" for count in row) for row in counts_KK)
    heat = Heat(shares_KK, "share of the true label", hover, text=cells)
    axes = Axis("predicted label", names=labels), Axis("true label", names=labels, down=True)
    panel = Panel("Confusion matrix", (heat,), *axes, height=160 + 36 * len(labels), wide=True)
    return Picture(title, (panel,))
