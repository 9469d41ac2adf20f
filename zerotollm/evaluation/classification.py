"""How well labels are told: probabilities, accuracy, F1, the confusion matrix; and a baseline that counts words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import UsageError

ROWS = 32
"""Texts at once."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularization that the baseline tries."""


LabelStep = Callable[[Any, Mapping[str, Any]], tuple[Any, Any, Any]]
"""`zerotollm.training.step.make_label_step`: (params, batch) -> probabilities, labels and weights of the rows."""


def predict_batches(
    step: LabelStep, params: Any, batches: Iterable[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [N, K], true labels [N]) of all examples in the batches."""
    found = []
    for batch in batches:
        probabilities, labels, weights = (np.asarray(x) for x in step(params, batch))
        found.append((probabilities[weights > 0], labels[weights > 0]))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def label_probabilities(
    step: LabelStep, params: Any, tokenizer: AnyTokenizer, texts: Sequence[str], *, max_length: int
) -> np.ndarray:
    """Probabilities [N, K] of every label of each text. Raises UsageError for one of more than `max_length` tokens."""
    encoded = tokenizer.encode_batch([as_sentence(text) for text in texts])
    ids = [np.append(tokenizer.bos_id, ids_N) for ids_N in encoded]
    for number, ids_N in enumerate(ids, 1):
        if len(ids_N) > max_length:
            which = f" number {number:,}" if len(ids) > 1 else ""
            raise UsageError(
                f"the text{which} is {len(ids_N) - 1:,} tokens long and the context of this model holds "
                f"{max_length - 1:,}: shorten it"
            )

    def batch(part: list[np.ndarray]) -> dict[str, np.ndarray]:
        width = min(max_length, -(-max(map(len, part)) // 64) * 64)
        inputs = np.full((ROWS, width), tokenizer.pad_id, np.int32)
        weights = np.zeros((ROWS, width), np.float32)
        for row, text in enumerate(part):
            inputs[row, : len(text)] = text
            weights[row, len(text) - 1] = 1
        return {"inputs": inputs, "targets": np.zeros_like(inputs), "weights": weights}

    batches = (batch(ids[start : start + ROWS]) for start in range(0, len(ids), ROWS))
    return predict_batches(step, params, batches)[0]


def label_scores(true_N: np.ndarray, found_N: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """`accuracy`; `macro_f1`, the mean F1 of the labels that occur, as they are or as they were found; `by_label` with
    precision, recall, f1 and examples; `confusion[i][j]`: examples of label i taken for label j."""
    K = len(labels)
    confusion_KK = np.bincount(true_N * K + found_N, minlength=K * K).reshape(K, K)
    right_K, true_K, found_K = np.diag(confusion_KK), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)

    def share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
        return part / np.maximum(of, 1)

    f1_K = share(2 * right_K, true_K + found_K)
    return {
        "accuracy": float(right_K.sum() / len(true_N)),
        "macro_f1": float(f1_K[true_K + found_K > 0].mean()),
        "examples": len(true_N),
        "labels": list(labels),
        "by_label": {
            label: {
                "precision": float(share(right_K, found_K)[k]),
                "recall": float(share(right_K, true_K)[k]),
                "f1": float(f1_K[k]),
                "examples": int(true_K[k]),
            }
            for k, label in enumerate(labels)
        },
        "confusion": confusion_KK.tolist(),
    }


def baseline_scores(
    splits: Mapping[str, Sequence[tuple[str, str]]], split: str, labels: Sequence[str]
) -> dict[str, Any]:
    """`label_scores` on a split of (text, label) of logistic regression on TF-IDF of words and pairs of words, trained
    on the training split, its strength chosen on validation, and `strength`; where it cannot be computed, the reason
    alone as `not_computed`."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {"not_computed": "pip install scikit-learn"}
    number = {label: k for k, label in enumerate(labels)}
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        x = {"train": features.fit_transform([text for text, _ in splits["train"]])}
    except ValueError:  # no words at all, or none that two texts share
        return {"not_computed": "no word occurs twice"}
    for name in {"validation", split} - {"train"}:
        x[name] = features.transform([text for text, _ in splits[name]])
    y = {name: np.array([number[label] for _, label in splits[name]]) for name in x}
    models = [
        (strength, LogisticRegression(C=strength, max_iter=1000).fit(x["train"], y["train"]))
        for strength in STRENGTHS
    ]
    strength, best = max(models, key=lambda pair: pair[1].score(x["validation"], y["validation"]))
    return label_scores(y[split], best.predict(x[split]), labels) | {"strength": strength}
