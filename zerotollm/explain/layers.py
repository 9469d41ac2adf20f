"""What do the layers add to the embedding? The share of context in vectors of tokens, and linear probes, by layer.

The embedding gives a token one vector. The layers after it give it another vector at each of its positions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import UNKNOWN, Estimate, beyond_null, mean_estimate, outcome_of, verdict
from zerotollm.explain.figures.marks import Axis, Bars, Line, Panel, said
from zerotollm.significance import Outcome

CLASSES = 10
"""Most frequent next tokens, the classes of a probe."""
PARTS = 4
"""Parts of a window, the classes of another probe."""
RIDGE = 0.01
"""Penalty of the ridge regression."""
CONTROLS = 8
"""Control tasks, whose mean is taken."""


@dataclass(frozen=True)
class Probe:
    """Accuracy of a linear probe at M states of the residual stream (Alain and Bengio 2017, arXiv:1610.01644)."""

    task: str
    classes: int
    accuracy_M: Estimate[np.ndarray]
    """on held-out windows, with Student's intervals over them"""
    control_M: np.ndarray
    """accuracy on control tasks, which can only be memorized (Hewitt and Liang 2019, arXiv:1909.03368); mean"""
    selectivity_M: Estimate[np.ndarray]
    """accuracy minus control accuracy (the same, section 2.2); simultaneous intervals over windows and draws"""
    majority: float
    """accuracy of the most frequent class"""
    fresh_selectivity: float = float("nan")
    """highest of any state of a model with fresh parameters, mean over such models"""
    learned: Estimate[float] = UNKNOWN
    """highest selectivity minus that of fresh parameters"""

    def place(self) -> int:
        """Return the index of the state with the highest selectivity."""
        return int(self.selectivity_M.value.argmax())

    def best(self) -> int | None:
        """Return the same if the selectivity there is significantly above 0, or None."""
        return self.place() if self.selectivity_M.low[self.place()] > 0 else None

    def sentence(self) -> str:
        """Return where the probe is best, and whether training improved it."""
        m = self.place()
        accuracy, selectivity = self.accuracy_M.at(m), self.selectivity_M.at(m)
        where = f"after layer {m}" if m else "from the embedding"
        facts = f"{self.task} right {accuracy} {where} (guessing {self.majority:.2f}, control {self.control_M[m]:.2f})"
        if self.best() is None:
            random = "random labels are read even better"
            control = random if selectivity.high < 0 else "more than a control is not shown"
            return f"{facts}: {control} (selectivity {selectivity})"
        against = verdict(
            self.learned,
            f"more than fresh parameters give, by {self.learned}",
            f"less than fresh parameters give, by {-self.learned.value:.3g}",
            "that training adds to it is not shown",
        )
        return f"{facts}: selectivity {selectivity}, with fresh parameters {self.fresh_selectivity:.2f}: {against}"


@dataclass(frozen=True)
class Layers(Answer):
    """Vectors of tokens at M = L + 1 states of the residual stream, 0 the embedding."""

    self_similarity_M: Estimate[np.ndarray]
    """mean cosine of the same token at two positions, over tokens (Ethayarajh 2019, arXiv:1909.00512, section 3.1)"""
    any_similarity_M: np.ndarray
    """mean cosine of any two tokens, the anisotropy (the same, section 3.2)"""
    sentence_similarity_M: Estimate[np.ndarray]
    """mean cosine of a token and its sentence's mean, over sentences"""
    context_M: np.ndarray
    """share of the variance between positions of the same token, 0 to 1"""
    probes: tuple[Probe, ...]
    tokens: int
    where: str = ""
    """"encoder" or "decoder" of a model that has both"""
    fresh: int = 0
    """models with fresh parameters that were measured on the same windows"""
    fresh_similarity: float = float("nan")
    """their mean `own_similarity` after the last layer"""
    fresh_context: float = float("nan")
    """their mean `context_M` after the last layer"""
    learned: Estimate[float] = UNKNOWN
    """`own_similarity` after the last layer minus that of fresh parameters; below 0: more context"""
    learned_context: Estimate[float] = UNKNOWN
    """`context_M` after the last layer minus that of fresh parameters; above 0: more context"""
    title = "From one vector to many"

    @property
    def own_similarity(self) -> np.ndarray:
        """Self-similarity minus anisotropy, (M,) (Ethayarajh 2019, section 4.1)."""
        return self.self_similarity_M.value - self.any_similarity_M

    def outcome(self) -> Outcome:
        """Return whether training increased the effect of context, which both measures must show.

        Anisotropy alone lowers the first.
        """
        context = outcome_of(self.learned_context)
        opposite = {"shown": "opposite shown", "opposite shown": "shown", "not shown": "not shown"}
        return context if context == opposite[outcome_of(self.learned)] else "not shown"

    def sentence(self) -> str:
        first, last = (self.self_similarity_M.at(m) for m in (0, -1))
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

    def panels(self) -> Iterator[Panel]:
        names = state_names(len(self.context_M))
        axis = Axis(names=tuple(name.removeprefix("layer ") for name in names), label="after layer")

        def curve(name: str, color: int, columns: tuple[np.ndarray, ...]) -> Line:
            """Return a line of values, or of values with an interval."""
            value, *interval = columns
            low, high = interval or (None, None)
            template = "{}, {}: {:.3f} [{:.3f}, {:.3f}]" if interval else "{}, {}: {:.3f}"
            hover = said(template, names, name.partition(":")[0], *columns)
            return Line(range(len(names)), value, name, color, low, high, hover, dots=True)

        similar = (
            curve("the same token elsewhere", 0, self.self_similarity_M),
            curve("its own sentence", 2, self.sentence_similarity_M),
            curve("any two tokens", 6, (self.any_similarity_M,)),
        )
        share = 100 * self.context_M
        hover = said("{}: {:.1f} % of the variance is context", names, share)
        bars = Bars(range(len(names)), share, hover=hover)
        where = f"{self.where.capitalize()}: " if self.where else ""
        yield Panel(f"{where}Cosine with ...", similar, axis, Axis("cosine"))
        yield Panel(f"{where}How much of the variance is context", (bars,), axis, Axis("%", span=(0, 100)))
        for probe in self.probes:
            majority = [probe.majority] * 2
            marks = (
                curve("linear probe", 0, probe.accuracy_M),
                curve("control: random labels", 6, (probe.control_M,)),
                Line([0, len(names) - 1], majority, "the most frequent answer", 1, dashed=True),
            )
            axes = axis, Axis("share right", span=(0, 1))
            yield Panel(f"{where}Probe: {probe.task}", marks, *axes)


def state_names(M: int) -> tuple[str, ...]:
    """Return the names of the M states of the residual stream."""
    return ("embedding", *(f"layer {m}" for m in range(1, M)))


def explain_layers(
    residual_MBTD: np.ndarray,
    windows_BW: np.ndarray,
    ends_V: np.ndarray,
    labels: Mapping[str, np.ndarray] | None = None,
    fresh: Iterable[np.ndarray] = (),
    seed: int = 0,
) -> Layers:
    """Measure the vectors of B windows of T + 1 tokens; `ends_V` is True for tokens that end a sentence.

    `labels` are further classes to probe for: name -> (B, T) integers, -1 for none. `fresh` are the vectors, (M, B, T,
    D), of models with fresh parameters on the same windows.
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
    """Measure N vectors, of tokens `ids_N` in numbered windows and sentences.

    `labels` are the classes to probe for: name -> N integers, -1 for none. `fresh` are the vectors of models with fresh
    parameters, which are measured one by one.
    """
    vectors_MND = np.asarray(vectors_MND, np.float32)
    similarities = [_similarities(x_ND, ids_N, sentence_N) for x_ND in vectors_MND]
    same, any_two, sentence, context = zip(*similarities, strict=True)
    tasks = {}
    for name, label in labels.items():
        label_N = np.asarray(label).ravel()
        used_N = label_N >= 0
        # A probe needs two classes, and windows both to fit on and to test on.
        if all(len(np.unique(x_N[used_N])) > 1 for x_N in (label_N, window_N % 2)):
            tasks[name] = label_N
    similar_K, context_K, selective = [], [], {name: [] for name in tasks}
    for x_MND in fresh:
        same_token, any_token, _, share = _similarities(x_MND[-1], ids_N, sentence_N)
        similar_K.append(same_token.value - any_token)
        context_K.append(share)
        for name, label_N in tasks.items():
            _, selectivity_MB, *_ = _probe_accuracy(x_MND, label_N, ids_N, window_N, seed)
            selective[name].append(selectivity_MB.mean(1).max())
    comparisons, questions = len(vectors_MND) * max(len(tasks), 1), 2 + len(tasks)
    probes = []
    for name, label_N in tasks.items():
        result = probe(name, vectors_MND, label_N, ids_N, window_N, comparisons, seed)
        task = name if "token" not in name else f"{name} (of {result.classes})"
        mean, learned = _beyond_fresh(result.selectivity_M.value.max(), selective[name], questions)
        probes.append(replace(result, task=task, fresh_selectivity=mean, learned=learned))
    same_M, any_M, context_M = Estimate(*np.transpose(same)), np.array(any_two), np.array(context)
    fresh_similarity, learned = _beyond_fresh(same_M.value[-1] - any_M[-1], similar_K, questions)
    fresh_context, learned_context = _beyond_fresh(context_M[-1], context_K, questions)
    return Layers(
        same_M,
        any_M,
        Estimate(*np.transpose(sentence)),
        context_M,
        tuple(probes),
        len(ids_N),
        where,
        len(similar_K),
        fresh_similarity,
        fresh_context,
        learned,
        learned_context,
    )


def _beyond_fresh(value: float, fresh_K: list[float], questions: int) -> tuple[float, Estimate[float]]:
    """Return the mean of models with fresh parameters, nan without any, and the difference of a value from them."""
    mean = float(np.mean(fresh_K)) if fresh_K else float("nan")
    return mean, beyond_null(float(value), np.array(fresh_K), questions)


def frequent_labels(ids: np.ndarray) -> np.ndarray:
    """Return the rank of each id among the `CLASSES` most frequent ones, from 0; -1 for other ids and for -1."""
    values, counts = np.unique(ids[ids >= 0], return_counts=True)
    hit = ids[..., None] == values[np.argsort(-counts, kind="stable")][:CLASSES]
    return np.where(hit.any(-1), hit.argmax(-1), -1)


def part_labels(length: int) -> np.ndarray:
    """Return the part, of `PARTS`, of a text in which each of its tokens is, (T,)."""
    return np.arange(length) * PARTS // length


def _sums(x_ND: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the vectors of each group, and its size."""
    _, group_N, count_G = np.unique(group_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(group_N, kind="stable")
    starts_G = np.cumsum(count_G) - count_G
    return np.add.reduceat(x_ND[order_N], starts_G, axis=0), count_G


def _similarities(
    x_ND: np.ndarray, ids_N: np.ndarray, sentence_N: np.ndarray
) -> tuple[Estimate[float], float, Estimate[float], float]:
    """Return the similarities of `Layers`, to the same token, any token and the sentence, and the share of context."""
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
    cosine_G = np.bincount(place_N, cosine_N) / n_G
    of_sentence = mean_estimate(cosine_G[several] if several.any() else cosine_G)

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
    comparisons: int = 1,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe on the even windows and test it on the odd ones, at every state of the residual stream.

    It is ridge regression on one-hot labels, which has one solution and needs no optimizer. A control task gives each
    token id one of the task's labels at random, so it can only be memorized.
    """
    accuracy = _probe_accuracy(vectors_MND, label_N, ids_N, window_N, seed)
    right_MB, selectivity_MB, control_MC, majority = accuracy
    # Both the windows and the draw of the control labels vary.
    over_windows = mean_estimate(selectivity_MB.T, comparisons)
    over_draws = mean_estimate(control_MC.T, comparisons)
    half_M = np.hypot(over_windows.high - over_windows.value, over_draws.high - over_draws.value)
    selective_M = over_windows.value
    return Probe(
        task,
        len(np.unique(label_N[label_N >= 0])),
        mean_estimate(right_MB.T),
        control_MC.mean(1),
        Estimate(selective_M, selective_M - half_M, selective_M + half_M),
        majority,
    )


def _probe_accuracy(
    vectors_MND: np.ndarray, label_N: np.ndarray, ids_N: np.ndarray, window_N: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return a probe's accuracy at M states on the windows that it was not fitted on.

    By window, (M, B); the same minus the mean of the control tasks, (M, B); that of each control task, (M, C); and the
    accuracy of the most frequent class.
    """
    used_N = label_N >= 0
    classes, label = np.unique(label_N[used_N], return_inverse=True)
    random = np.random.default_rng(seed)
    _, type_ = np.unique(ids_N[used_N], return_inverse=True)
    tasks_CN = np.stack(
        [label, *(label[random.integers(0, len(label), type_.max() + 1)][type_] for _ in range(CONTROLS))]
    )
    test = window_N[used_N] % 2 == 1
    fit = ~test
    targets = np.eye(len(classes))[tasks_CN[:, fit].T].reshape(fit.sum(), -1)
    windows, window = np.unique(window_N[used_N][test], return_inverse=True)
    size_B = np.bincount(window)
    right_MCB = np.empty((len(vectors_MND), len(tasks_CN), len(windows)))
    for right_CB, x_ND in zip(right_MCB, vectors_MND, strict=True):
        x = x_ND[used_N].astype(np.float64)
        x = (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-6)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        gram = x[fit].T @ x[fit] / fit.sum() + RIDGE * np.eye(x.shape[1])
        scores = x[test] @ np.linalg.solve(gram, x[fit].T @ targets / fit.sum())
        predicted_NC = scores.reshape(test.sum(), len(tasks_CN), len(classes)).argmax(-1)
        for right_B, predicted_N, true_N in zip(right_CB, predicted_NC.T, tasks_CN[:, test], strict=True):
            right_B[:] = np.bincount(window, predicted_N == true_N) / size_B
    majority = np.bincount(label[fit], minlength=len(classes)).argmax()
    right_MB, control_MCB = right_MCB[:, 0], right_MCB[:, 1:]
    control_MC = (control_MCB * size_B).sum(2) / size_B.sum()
    return right_MB, right_MB - control_MCB.mean(1), control_MC, float((label[test] == majority).mean())
