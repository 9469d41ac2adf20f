"""What is the difference between the embedding layer and the encoding layers; why two?

The embedding gives a token one vector. The layers after it give a vector for each place where the token stands: how
much these differ, and what can be read from them, is measured layer by layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import UNKNOWN, Estimate, beyond_null, mean_estimate, outcome_of, verdict
from zerotollm.significance import Outcome

CLASSES = 10
"""Next tokens that a probe tells apart, the most frequent."""
PARTS = 4
"""Parts of a window that a probe tells apart."""
RIDGE = 0.01
CONTROLS = 8
"""Control tasks, of which the mean is taken: one draw of labels is luck."""


@dataclass(frozen=True)
class Probe:
    """What a linear read-out finds at M places of the stream (Alain and Bengio 2017, arXiv:1610.01644)."""

    task: str
    classes: int
    accuracy_M: Estimate
    """on windows that it was not fitted on; Student's intervals over these"""
    control_M: np.ndarray
    """accuracy where every token has one label drawn by lot: what it can learn by heart (Hewitt and Liang 2019,
    arXiv:1909.03368); mean of `CONTROLS` draws"""
    selectivity_M: Estimate
    """accuracy above the control's (the same, section 2.2), over windows and draws; all intervals hold together"""
    majority: float
    """of always saying the most frequent class"""
    fresh_selectivity: float = float("nan")
    """the highest of any place of a model with fresh parameters, mean over such models"""
    learned: Estimate = UNKNOWN
    """the highest selectivity above that of fresh parameters"""

    def place(self) -> int:
        """The place of the stream with the highest selectivity."""
        return int(self.selectivity_M.value.argmax())

    def best(self) -> int | None:
        """The same if the selectivity there is surely above 0, or None."""
        return self.place() if self.selectivity_M.low[self.place()] > 0 else None

    def sentence(self) -> str:
        """Where the task is read best, and whether training put it there."""
        m = self.place()
        accuracy, selectivity = (
            Estimate(*(float(x[m]) for x in e)) for e in (self.accuracy_M, self.selectivity_M)
        )
        where = f"after layer {m}" if m else "from the embedding"
        facts = f"{self.task} right {accuracy} {where} (guessing {self.majority:.2f}, control {self.control_M[m]:.2f})"
        if self.best() is None:
            beside = (
                "labels drawn by lot are read even better"
                if selectivity.high < 0
                else "more than a control is not shown"
            )
            return f"{facts}: {beside} (selectivity {selectivity})"
        against = verdict(
            self.learned,
            f"more than fresh parameters give, by {self.learned}",
            f"less than fresh parameters give, by {-self.learned.value:.3g}",
            "that training adds to it is not shown",
        )
        return f"{facts}: selectivity {selectivity}, with fresh parameters {self.fresh_selectivity:.2f}: {against}"


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
    fresh: int = 0
    """models with fresh parameters that were looked at on the same windows"""
    fresh_similarity: float = float("nan")
    """their mean of `own_similarity` after the last layer"""
    fresh_context: float = float("nan")
    """their mean of `context_M` after the last layer"""
    learned: Estimate = UNKNOWN
    """`own_similarity` after the last layer minus that of fresh parameters: below 0, context tells more apart"""
    learned_context: Estimate = UNKNOWN
    """the same of `context_M`: above 0, context tells more apart"""

    @property
    def own_similarity(self) -> np.ndarray:
        """Cosine of the same token at two places above that of any two tokens, (M,): anisotropy is no
        context (Ethayarajh 2019, section 4.1)."""
        return self.self_similarity_M.value - self.any_similarity_M

    def outcome(self) -> Outcome:
        """Whether training made context tell the places of a token apart: only where both measures say so, since in a
        narrower cone the first is smaller whatever context does."""
        apart = outcome_of(self.learned_context)
        turned = {"shown": "opposite shown", "opposite shown": "shown", "not shown": "not shown"}
        return apart if apart == turned[outcome_of(self.learned)] else "not shown"

    def sentence(self) -> str:
        first, last = (Estimate(*(float(x[m]) for x in self.self_similarity_M)) for m in (0, -1))
        L = len(self.context_M) - 1
        one = "one vector, wherever it stands" if first.low > 0.999 else f"already several vectors ({first})"
        many = (
            f"after layer {L} its vectors at two places have a cosine of {last}, {self.own_similarity[-1]:.2f} above "
            f"that of any two tokens, and {100 * self.context_M[-1]:.0f} % of all variance is context"
        )
        if self.fresh:
            many += (
                f"; with fresh parameters these are {self.fresh_similarity:.2f} and {100 * self.fresh_context:.0f} %: "
            ) + {
                "shown": "training made context tell a token's places apart, by {} and {}",
                "opposite shown": "training made a token's places more alike, by {} and {}",
                "not shown": "that training made context tell them apart is not shown ({} and {})",
            }[self.outcome()].format(self.learned, self.learned_context)
        else:
            many += "; how much of it was learned is not shown, since no fresh parameters were looked at"
        start = f"The {self.where}: in" if self.where else "In"
        probes = f" Linear probes read {'; '.join(p.sentence() for p in self.probes)}." if self.probes else ""
        return f"{start} the embedding a token is {one}; {many}.{probes}"


def explain_layers(
    residual_MBTD: np.ndarray,
    windows_BW: np.ndarray,
    ends_V: np.ndarray,
    labels: Mapping[str, np.ndarray] | None = None,
    fresh: Iterable[np.ndarray] = (),
    seed: int = 0,
) -> Layers:
    """Measures the vectors of B windows of T + 1 tokens; `ends_V` is True for tokens that end a sentence.

    `labels`, name -> (B, T) of whole numbers, are further things to probe for; -1 is no label. `fresh` are the vectors,
    (M, B, T, D), of models with fresh parameters on the same windows.
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
        fresh=(x_MBTD.reshape(M, B * T, D) for x_MBTD in fresh),
        seed=seed,
    )


def explain_vectors(
    vectors_MND: np.ndarray,
    ids_N: np.ndarray,
    window_N: np.ndarray,
    sentence_N: np.ndarray,
    labels: Mapping[str, np.ndarray],
    where: str = "",
    fresh: Iterable[np.ndarray] = (),
    seed: int = 0,
) -> Layers:
    """Measures N vectors: the token of each, the number of the window and of the sentence in which it stands, and what
    to probe for, name -> N whole numbers, -1 for none. `fresh` are the same of models with fresh parameters."""
    vectors_MND = np.asarray(vectors_MND, np.float32)
    own, any_, inside, context = zip(
        *(_similarities(x_ND, ids_N, sentence_N) for x_ND in vectors_MND), strict=True
    )
    tasks = {name: np.asarray(label).ravel() for name, label in labels.items()}
    classes = {name: len(np.unique(label_N[label_N >= 0])) for name, label_N in tasks.items()}
    # Something to tell apart, and windows both to fit on and to try it on.
    tasks = {
        name: label_N
        for name, label_N in tasks.items()
        if classes[name] > 1 and len(np.unique(window_N[label_N >= 0] % 2)) > 1
    }
    comparisons = len(vectors_MND) * max(len(tasks), 1)
    probes = [
        probe(
            name if "token" not in name else f"{name} (of {classes[name]})",
            vectors_MND, label_N, ids_N, window_N, comparisons, seed,
        )
        for name, label_N in tasks.items()
    ]  # fmt: skip
    found = Layers(
        Estimate(*map(np.array, zip(*own, strict=True))),
        np.array(any_),
        Estimate(*map(np.array, zip(*inside, strict=True))),
        np.array(context),
        tuple(probes),
        len(ids_N),
        where,
    )
    # Of each model with fresh parameters three kinds of numbers, and no more than one model at a time.
    similar_K, context_K, selective_KP = [], [], []
    for x_MND in fresh:
        last, any_two, _, share = _similarities(x_MND[-1], ids_N, sentence_N)
        similar_K.append(last.value - any_two)
        context_K.append(share)
        read = [_read_out(x_MND, label_N, ids_N, window_N, seed) for label_N in tasks.values()]
        selective_KP.append([(r.right_MB - r.control_MB).mean(1).max() for r in read])
    if not similar_K:
        return found
    questions = 2 + len(tasks)
    against = [
        replace(
            p,
            fresh_selectivity=float(np.mean(null_K)),
            learned=beyond_null(float(p.selectivity_M.value.max()), np.array(null_K), questions),
        )
        for p, null_K in zip(probes, zip(*selective_KP, strict=True), strict=True)
    ]
    return replace(
        found,
        probes=tuple(against),
        fresh=len(similar_K),
        fresh_similarity=float(np.mean(similar_K)),
        fresh_context=float(np.mean(context_K)),
        learned=beyond_null(float(found.own_similarity[-1]), np.array(similar_K), questions),
        learned_context=beyond_null(float(found.context_M[-1]), np.array(context_K), questions),
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


class ReadOut(NamedTuple):
    """How often a probe was right on the windows that it was not fitted on, at M places of the stream."""

    right_MB: np.ndarray
    """share of each window"""
    control_MB: np.ndarray
    """the same of the control tasks, their mean"""
    control_MC: np.ndarray
    """of each control task, over all windows"""
    majority: float


def probe(
    task: str,
    vectors_MND: np.ndarray,
    label_N: np.ndarray,
    ids_N: np.ndarray,
    window_N: np.ndarray,
    comparisons: int = 1,
    seed: int = 0,
) -> Probe:
    """Fits a linear read-out on the even windows and tries it on the odd ones, at every place of the stream.

    It is ridge regression on one-hot labels: no steps, no rate, one solution. A control gives each token a label
    drawn from the task's own labels, so that only who knows the token by heart can know it.
    """
    found = _read_out(vectors_MND, label_N, ids_N, window_N, seed)
    # Two things vary: the windows, and which labels were drawn.
    over_windows = mean_estimate((found.right_MB - found.control_MB).T, comparisons)
    over_draws = mean_estimate(found.control_MC.T, comparisons)
    half_M = np.hypot(over_windows.high - over_windows.value, over_draws.high - over_draws.value)
    selective_M = over_windows.value
    return Probe(
        task,
        len(np.unique(label_N[label_N >= 0])),
        mean_estimate(found.right_MB.T),
        found.control_MC.mean(1),
        Estimate(selective_M, selective_M - half_M, selective_M + half_M),
        found.majority,
    )


def _read_out(
    vectors_MND: np.ndarray, label_N: np.ndarray, ids_N: np.ndarray, window_N: np.ndarray, seed: int
) -> ReadOut:
    used_N = label_N >= 0
    classes, label = np.unique(label_N[used_N], return_inverse=True)
    ids, window = ids_N[used_N], window_N[used_N]
    random = np.random.default_rng(seed)
    _, type_ = np.unique(ids, return_inverse=True)
    tasks_CN = np.stack(
        [label, *(label[random.integers(0, len(label), type_.max() + 1)][type_] for _ in range(CONTROLS))]
    )
    fit, test = window % 2 == 0, window % 2 == 1
    targets = np.eye(len(classes))[tasks_CN[:, fit].T].reshape(fit.sum(), -1)
    windows, place = np.unique(window[test], return_inverse=True)
    size_B = np.bincount(place)
    right_MCB = np.empty((len(vectors_MND), len(tasks_CN), len(windows)))
    for right_CB, x_ND in zip(right_MCB, vectors_MND, strict=True):
        x = x_ND[used_N].astype(np.float64)
        x = (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-6)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        gram = x[fit].T @ x[fit] / fit.sum() + RIDGE * np.eye(x.shape[1])
        guesses = x[test] @ np.linalg.solve(gram, x[fit].T @ targets / fit.sum())
        said_NC = guesses.reshape(test.sum(), len(tasks_CN), len(classes)).argmax(-1)
        for right_B, said_N, true_N in zip(right_CB, said_NC.T, tasks_CN[:, test], strict=True):
            right_B[:] = np.bincount(place, said_N == true_N) / size_B
    majority = np.bincount(label[fit], minlength=len(classes)).argmax()
    return ReadOut(
        right_MCB[:, 0],
        right_MCB[:, 1:].mean(1),
        (right_MCB[:, 1:] * size_B).sum(2) / size_B.sum(),
        float((label[test] == majority).mean()),
    )
