"""What is the difference between the embedding layer and the encoding layers; why two?

The embedding gives a token one vector. The layers after it give a vector for each place where the token stands: how
much these differ, and what can be read from them, is measured layer by layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.statistics import Estimate, mean_estimate

CLASSES = 10
"""Next tokens that a probe tells apart, the most frequent."""
PARTS = 4
"""Parts of a window that a probe tells apart."""
RIDGE = 0.01


@dataclass(frozen=True)
class Probe:
    """What a linear read-out finds at M places of the stream (Alain and Bengio 2017, arXiv:1610.01644)."""

    task: str
    classes: int
    accuracy_M: Estimate
    """on windows that it was not fitted on; Student's intervals over these"""
    control_M: np.ndarray
    """accuracy where every token has one label drawn by lot: what it can learn by heart (Hewitt and Liang 2019,
    arXiv:1909.03368)"""
    gain_M: Estimate
    """accuracy above that at the embedding, on the same windows"""
    majority: float
    """of always saying the most frequent class"""

    def best(self) -> int | None:
        """The place with the best accuracy that is surely above the majority, or None."""
        sure_M = self.accuracy_M.low > self.majority
        return int(np.where(sure_M, self.accuracy_M.value, -1).argmax()) if sure_M.any() else None


@dataclass(frozen=True)
class Layers(Answer):
    """Vectors of tokens at M = L + 1 places of the residual stream, 0 the embedding."""

    self_similarity_M: Estimate
    """mean cosine of the same token at two places, over tokens (Ethayarajh 2019, arXiv:1909.00512, section 3.1)"""
    any_similarity_M: np.ndarray
    """mean cosine of any two tokens: how narrow the cone is in which all vectors lie (the same, section 3.2)"""
    sentence_similarity_M: Estimate
    """mean cosine of a token and its sentence's mean, over sentences"""
    context_M: np.ndarray
    """share of the variance between places of the same token, 0 to 1"""
    probes: tuple[Probe, ...]
    tokens: int
    where: str = ""
    """"encoder" or "decoder" of a model that has both"""

    def sentence(self) -> str:
        first, last = (Estimate(*(float(x[m]) for x in self.self_similarity_M)) for m in (0, -1))
        L = len(self.context_M) - 1
        one = "one vector, wherever it stands" if first.low > 0.999 else f"already several vectors ({first})"
        if last.high < first.low:
            many = (
                f"after layer {L} its vectors at two places have a cosine of {last} and "
                f"{100 * self.context_M[-1]:.0f} % of all variance is context"
            )
        else:
            many = f"after layer {L} nothing shows that context tells its vectors apart (cosine {last})"
        read = []
        for probe in self.probes:
            m = probe.best()
            if m is None:
                read.append(f"{probe.task} can be read nowhere better than by guessing {probe.majority:.2f}")
            else:
                where = "from the embedding" if m == 0 else f"after layer {m}"
                found = Estimate(*(float(x[m]) for x in probe.accuracy_M))
                better = probe.gain_M.low[m] > 0
                before = (
                    ""
                    if m == 0
                    else f", {'more' if better else 'not shown to be more'} than from the embedding"
                )
                read.append(
                    f"{probe.task} is best read {where}: {found}{before}, guessing {probe.majority:.2f}, control "
                    f"{probe.control_M[m]:.2f}"
                )
        start = f"The {self.where}: in" if self.where else "In"
        return f"{start} the embedding a token is {one}; {many}. By linear probes {'; '.join(read)}."


def explain_layers(
    residual_MBTD: np.ndarray,
    windows_BW: np.ndarray,
    ends_V: np.ndarray,
    labels: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Layers:
    """Measures the vectors of B windows of T + 1 tokens; `ends_V` is True for tokens that end a sentence.

    `labels`, name -> (B, T) of whole numbers, are further things to probe for; -1 is no label.
    """
    M, B, T, D = residual_MBTD.shape
    ids_BT, next_BT = windows_BW[:, :T], windows_BW[:, 1 : T + 1]
    ends_N = ends_V[np.minimum(ids_BT.ravel(), len(ends_V) - 1)] | (np.arange(B * T) % T == 0)
    tasks = {
        "the next token": frequent_labels(next_BT),
        f"the place in the window (of {PARTS} parts)": np.broadcast_to(part_labels(T), (B, T)),
        **(labels or {}),
    }
    return explain_vectors(
        residual_MBTD.reshape(M, B * T, D),
        ids_BT.ravel(),
        np.repeat(np.arange(B), T),
        np.cumsum(ends_N),
        tasks,
        seed=seed,
    )


def explain_vectors(
    vectors_MND: np.ndarray,
    ids_N: np.ndarray,
    window_N: np.ndarray,
    sentence_N: np.ndarray,
    labels: Mapping[str, np.ndarray],
    where: str = "",
    seed: int = 0,
) -> Layers:
    """Measures N vectors: the token of each, the number of the window and of the sentence in which it stands, and what
    to probe for, name -> N whole numbers, -1 for none."""
    vectors_MND = np.asarray(vectors_MND, np.float32)
    own, any_, inside, context = zip(
        *(_similarities(x_ND, ids_N, sentence_N) for x_ND in vectors_MND), strict=True
    )
    tasks = {name: np.asarray(label).ravel() for name, label in labels.items()}
    classes = {name: len(np.unique(label_N[label_N >= 0])) for name, label_N in tasks.items()}
    return Layers(
        Estimate(*map(np.array, zip(*own, strict=True))),
        np.array(any_),
        Estimate(*map(np.array, zip(*inside, strict=True))),
        np.array(context),
        tuple(
            probe(
                name if "token" not in name else f"{name} (of {classes[name]})",
                vectors_MND,
                label_N,
                ids_N,
                window_N,
                seed,
            )
            for name, label_N in tasks.items()
            if classes[name] > 1
        ),
        len(ids_N),
        where,
    )


def frequent_labels(ids: np.ndarray) -> np.ndarray:
    """The place of each id among the `CLASSES` most frequent ones, -1 where it is none of them or none at all (-1)."""
    values, counts = np.unique(ids[ids >= 0], return_counts=True)
    return _index_in(values[np.argsort(-counts, kind="stable")][:CLASSES], ids)


def part_labels(length: int) -> np.ndarray:
    """In which of `PARTS` parts of a text each of its tokens stands, (T,)."""
    return np.arange(length) * PARTS // length


def _index_in(values_K: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The place of each number among `values_K`, -1 where it is none of them."""
    hit = x[..., None] == values_K
    return np.where(hit.any(-1), hit.argmax(-1), -1)


def _sums(x_ND: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the vectors of each group, and its size."""
    _, group_N, count_G = np.unique(group_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(group_N, kind="stable")
    starts_G = np.cumsum(count_G) - count_G
    return np.add.reduceat(x_ND[order_N], starts_G, axis=0), count_G


def _similarities(x_ND, ids_N, sentence_N) -> tuple[Estimate, float, Estimate, float]:
    x_ND = x_ND.astype(np.float64)
    unit_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    N = len(x_ND)

    # The mean cosine of all pairs of n unit vectors is (|sum|^2 - n) / (n (n - 1)).
    sums_GD, n_G = _sums(unit_ND, ids_N)
    several = n_G > 1
    pairs_G = (np.square(sums_GD[several]).sum(1) - n_G[several]) / (n_G[several] * (n_G[several] - 1))
    any_two = (np.square(unit_ND.sum(0)).sum() - N) / (N * (N - 1))

    sums_GD, n_G = _sums(x_ND, sentence_N)
    _, place_N = np.unique(sentence_N, return_inverse=True)
    means_GD = sums_GD / n_G[:, None]
    means_GD /= np.maximum(np.linalg.norm(means_GD, axis=1, keepdims=True), 1e-12)
    cosine_N = (unit_ND * means_GD[place_N]).sum(1)
    several = n_G > 1  # a sentence of one token is its own mean
    of_sentence = mean_estimate(
        (np.bincount(place_N, cosine_N) / n_G)[several if several.any() else slice(None)]
    )

    sums_GD, n_G = _sums(x_ND, ids_N)
    within = max(np.square(x_ND).sum() - (np.square(sums_GD).sum(1) / n_G).sum(), 0.0)
    total = np.square(x_ND - x_ND.mean(0)).sum()
    freedom = max(N - len(n_G), 1)
    share = min(1.0, within / freedom / max(total / max(N - 1, 1), 1e-300))
    alone = pairs_G if len(pairs_G) else np.array([np.nan])
    return mean_estimate(alone), float(any_two), of_sentence, share


def probe(
    task: str,
    vectors_MND: np.ndarray,
    label_N: np.ndarray,
    ids_N: np.ndarray,
    window_N: np.ndarray,
    seed: int = 0,
) -> Probe:
    """Fits a linear read-out on the even windows and tries it on the odd ones, at every place of the stream.

    It is ridge regression on one-hot labels: no steps, no rate, one solution. The control gives each token a label
    drawn from the task's own labels, so that only who knows the token by heart can know it.
    """
    used_N = label_N >= 0
    classes, label = np.unique(label_N[used_N], return_inverse=True)
    ids, window = ids_N[used_N], window_N[used_N]
    random = np.random.default_rng(seed)
    _, type_ = np.unique(ids, return_inverse=True)
    control = label[random.integers(0, len(label), type_.max() + 1)][type_]
    fit, test = window % 2 == 0, window % 2 == 1
    accuracies, controls = [], []
    for x_ND in vectors_MND:
        x = x_ND[used_N].astype(np.float64)
        x = (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-6)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        gram = x[fit].T @ x[fit] / fit.sum() + RIDGE * np.eye(x.shape[1])
        targets = np.concatenate([np.eye(len(classes))[y[fit]] for y in (label, control)], axis=1)
        guesses = x[test] @ np.linalg.solve(gram, x[fit].T @ targets / fit.sum())
        right = guesses[:, : len(classes)].argmax(1) == label[test]
        accuracies.append([right[window[test] == w].mean() for w in np.unique(window[test])])
        controls.append((guesses[:, len(classes) :].argmax(1) == control[test]).mean())
    right_MB = np.array(accuracies)
    majority = np.bincount(label[fit], minlength=len(classes)).argmax()
    return Probe(
        task,
        len(classes),
        mean_estimate(right_MB.T),
        np.array(controls),
        mean_estimate((right_MB - right_MB[:1]).T),
        float((label[test] == majority).mean()),
    )
