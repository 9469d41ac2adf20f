"""Classification: label probabilities, accuracy, F1, the confusion matrix, and a bag-of-words baseline."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from zerotollm.data.batches.windows import Batch
from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import WIDTH_MULTIPLE, padded
from zerotollm.model.build import Params
from zerotollm.model.config import round_up
from zerotollm.types import Json

ROWS = 32
"""Texts in a batch."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularization strengths that the baseline tries."""

LabelledSplits = Mapping[str, Sequence[tuple[str, str]]]
"""Name -> (text, label) of each example."""
Scores = Json
"""Name -> number, list or table, as JSON."""
LabelStep = Callable[[Params, Json], tuple[ArrayLike, ArrayLike, ArrayLike]]
"""`zerotollm.components.label_step_of`: (params, batch) -> probabilities, labels and weights of the rows."""
Predictions = tuple[np.ndarray, np.ndarray]
"""Probabilities [N, K] and true labels [N]."""


def predict_batches(step: LabelStep, params: Params, batches: Iterable[Batch]) -> Predictions:
    """Return the predictions for all examples in the batches."""
    results = []
    for batch in batches:
        probabilities, labels, weights = (np.asarray(x) for x in step(params, batch))
        results.append((probabilities[weights > 0], labels[weights > 0]))
    probabilities, labels = zip(*results, strict=True)
    return np.concatenate(probabilities), np.concatenate(labels)


def label_probabilities(
    step: LabelStep, params: Params, tokenizer: AnyTokenizer, texts: Sequence[str], *, max_length: int
) -> np.ndarray:
    """Return the probability [N, K] of every label of each text. Raises UsageError for a text that is too long."""
    encoded = tokenizer.encode_batch([as_sentence(text) for text in texts])
    ids = [np.append(tokenizer.bos_id, ids_N) for ids_N in encoded]
    for number, ids_N in enumerate(ids, 1):
        if len(ids_N) > max_length:
            which = f" number {number:,}" if len(ids) > 1 else ""
            raise UsageError(
                f"the text{which} is {len(ids_N) - 1:,} tokens long and the context of this model holds "
                f"{max_length - 1:,}: shorten it"
            )

    def batch(texts: list[np.ndarray]) -> Batch:
        width = min(max_length, round_up(max(map(len, texts)), WIDTH_MULTIPLE))
        inputs = padded(texts, ROWS, width, tokenizer.pad_id)
        weights = np.zeros(inputs.shape, np.float32)
        weights[np.arange(len(texts)), [len(text) - 1 for text in texts]] = 1
        return {"inputs": inputs, "targets": np.zeros_like(inputs), "weights": weights}

    batches = (batch(ids[start : start + ROWS]) for start in range(0, len(ids), ROWS))
    return predict_batches(step, params, batches)[0]


def label_scores(true_N: np.ndarray, predicted_N: np.ndarray, labels: Sequence[str]) -> Scores:
    """Return the scores of predicted labels; `true_N` and `predicted_N` are indices into `labels`.

    `macro_f1` averages over the labels that occur or were predicted. `confusion[i][j]` counts examples of label i that
    were predicted as label j.
    """
    K = len(labels)
    confusion_KK = np.bincount(true_N * K + predicted_N, minlength=K * K).reshape(K, K)
    correct_K, true_K, predicted_K = np.diag(confusion_KK), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    precision_K, recall_K = correct_K / np.maximum(predicted_K, 1), correct_K / np.maximum(true_K, 1)
    f1_K = 2 * correct_K / np.maximum(true_K + predicted_K, 1)
    return {
        "accuracy": float(correct_K.sum() / len(true_N)),
        "macro_f1": float(f1_K[true_K + predicted_K > 0].mean()),
        "examples": len(true_N),
        "labels": list(labels),
        "by_label": {
            label: {
                "precision": float(precision_K[k]),
                "recall": float(recall_K[k]),
                "f1": float(f1_K[k]),
                "examples": int(true_K[k]),
            }
            for k, label in enumerate(labels)
        },
        "confusion": confusion_KK.tolist(),
    }


def baseline_scores(splits: LabelledSplits, split: str, labels: Sequence[str]) -> Scores:
    """Return `label_scores` of logistic regression on TF-IDF of words and word pairs, and its `strength`.

    The baseline is fitted on the training split, its strength chosen on validation. Where it
    cannot be computed, the result is the reason, as `not_computed`.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {"not_computed": "pip install scikit-learn"}
    number = {label: k for k, label in enumerate(labels)}
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        x = {"train": features.fit_transform([text for text, _ in splits["train"]])}
    except ValueError:  # no words, or none that two texts share
        return {"not_computed": "no word occurs twice"}
    for name in {"validation", split} - {"train"}:
        x[name] = features.transform([text for text, _ in splits[name]])
    y = {name: np.array([number[label] for _, label in splits[name]]) for name in x}
    models = [
        (strength, LogisticRegression(C=strength, max_iter=1000).fit(x["train"], y["train"]))
        for strength in STRENGTHS
    ]
    strength, best = max(models, key=lambda pair: pair[1].score(x["validation"], y["validation"]))
    return {**label_scores(y[split], best.predict(x[split]), labels), "strength": strength}
