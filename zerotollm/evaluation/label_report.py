"""What evaluate does for a model that labels texts: scores beside those of a baseline, and the confusion matrix."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from zerotollm.evaluation.translation_report import not_read
from zerotollm.experiment import Experiment
from zerotollm.explain.figures.markup import literal, plain
from zerotollm.host.atomic_files import write_atomically

Scores = dict[str, Any]


def label_report(experiment: Experiment, run: Any, feed: Any, split: str, run_dir: Path) -> Scores:
    """Scores of the split, those of the `baseline`, the share of the most frequent training label, `most_frequent`, and
    where texts are longer than the model reads, how many are (`cut_texts`) and how many of their tokens are not read
    (`cut_tokens`).

    Writes confusion-SPLIT.json, .png and .html.
    """
    from collections import Counter

    from zerotollm.components import label_step_of
    from zerotollm.data.sources.examples import open_examples
    from zerotollm.evaluation.classification import baseline_scores, label_scores, predict_batches

    step = label_step_of(run.trained, run.tokenizer.pad_id)
    probabilities, true = predict_batches(step, run.params, feed.evaluation(split))
    scores = label_scores(true, probabilities.argmax(axis=1), run.labels)
    examples = open_examples(experiment.data, "label").splits
    splits = {
        name: [(example.parts[0].text, example.label) for example in examples[name]]
        for name in {"train", "validation", split}
    }
    most = Counter(label for _, label in splits["train"]).most_common(1)[0][0]
    scores["most_frequent"] = sum(label == most for _, label in splits[split]) / len(splits[split])
    if any(feed.cut.get(split, ())):
        scores["cut_texts"], scores["cut_tokens"] = feed.cut[split]
    scores["baseline"] = baseline_scores(splits, split, run.labels)
    path = run_dir / f"confusion-{split}"
    title = f"{experiment.data.corpus}, {split}: accuracy {scores['accuracy']:.3f}, macro F1 {scores['macro_f1']:.3f}"
    write_atomically(path.with_suffix(".json"), json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    write_atomically(path.with_suffix(".png"), png(scores, title))
    write_atomically(path.with_suffix(".html"), html(scores, title))
    return scores


def rows(scores: Scores, run_dir: Path, split: str) -> list[tuple[str, str]]:
    """The scores as people read them."""
    baseline = scores["baseline"]

    def both(scores: Scores) -> str:
        return f"accuracy {scores['accuracy']:.4f}, macro F1 {scores['macro_f1']:.4f}"

    return [
        ("labels", f"{both(scores)}, over {scores['examples']:,} texts"),
        *not_read(scores),
        (
            "baseline",
            f"{both(baseline)}: TF-IDF and logistic regression"
            if "accuracy" in baseline
            else f"not computed: {baseline['not_computed']}",
        ),
        ("always the most frequent", f"accuracy {scores['most_frequent']:.4f}"),
        *(
            (f"  {name}", f"F1 {one['f1']:.4f}, of {one['examples']:,}")
            for name, one in scores["by_label"].items()
        ),
        ("confusion", f"{run_dir / f'confusion-{split}.png'}, .html, .json"),
    ]


def png(scores: Scores, title: str) -> bytes:
    """The confusion matrix: a row is a label as it is, a column as it was found; the color is the row's share."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts, labels = np.array(scores["confusion"]), scores["labels"]
    names = [plain(label) for label in labels]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(size + 1, size), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "#111827"
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(labels)), names, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(labels)), names, fontsize=9)
    axes.set_xlabel("as it was found", fontsize=9)
    axes.set_ylabel("as it is", fontsize=9)
    axes.set_title(plain(title.replace(": ", "\n")), fontsize=10, loc="left")
    out = BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def html(scores: Scores, title: str) -> str:
    """The same as one self-contained page."""
    import numpy as np
    import plotly.graph_objects as go

    counts, labels = np.array(scores["confusion"]), [literal(label) for label in scores["labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=labels,
            y=labels,
            text=counts,
            texttemplate="%{text:,}",
            zmin=0,
            zmax=1,
            colorscale="Blues",
            hovertemplate="%{text:,} of %{y} taken for %{x}: %{z:.1%}<extra></extra>",
        )
    )
    figure.update_layout(
        title=literal(title),
        template="plotly_white",
        height=200 + 60 * len(labels),
        # Labels such as 1 or 2020-01-01 are names too.
        xaxis={"title": "as it was found", "type": "category"},
        yaxis={"title": "as it is", "type": "category", "autorange": "reversed"},
    )
    body = figure.to_html(full_html=False, include_plotlyjs=True, div_id="confusion")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Labels</title></head>\n'
        f'<body style="font-family: sans-serif; max-width: 1000px; margin: auto">\n{body}\n</body></html>\n'
    )
