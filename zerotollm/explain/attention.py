"""How does attention stay focused? Attention of each head on a text, and statistics over held-out text.

Heads are named after the tokens they attend to: the previous token, the token after an earlier occurrence of the same
token (induction heads: Olsson et al. 2022, arXiv:2209.11895), the same token, the first one (attention sinks: Xiao et
al. 2024, arXiv:2309.17453), punctuation (Clark et al. 2019, arXiv:1906.04341). `ablation.py` measures whether a head
matters.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.activations import LONGEST, LanguageModel, record_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import NEGLIGIBLE, Estimate, mean_estimate, verdict
from zerotollm.explain.figures.marks import Axis, Dots, Heat, Line, Panel, said, visible
from zerotollm.explain.figures.picture import Picture
from zerotollm.explain.words import KINDS, token_kinds
from zerotollm.model.config import TransformerConfig

ROLES = ("previous token", "same token", "first token", "punctuation", "induction")
NAMES = {
    "": "heads",
    "encoder": "heads of the encoder",
    "decoder": "heads of the decoder",
    "cross": "heads of cross attention",
}
"""Name of the heads by kind of attention."""
NAMED = 0.3
"""Minimum mean share of attention to a kind of token for a head to be named after it ..."""
TIMES_EVEN = 3.0
"""... and minimum ratio of that share to the share under even attention."""
REPEATED = 50
"""Maximum random tokens that are repeated."""
SEQUENCES = 8
"""Sequences of repeated random tokens."""

Pieces = tuple[str, ...]


class HeadStatistics(NamedTuple):
    """Mean attention of L x H heads in one window, over queries from the second on."""

    previous_LH: jax.Array | np.ndarray
    same_LH: jax.Array | np.ndarray
    """to all earlier occurrences of the query's token together"""
    first_LH: jax.Array | np.ndarray
    punctuation_LH: jax.Array | np.ndarray
    entropy_LH: jax.Array | np.ndarray
    """nats"""
    profile_LHT: jax.Array | np.ndarray
    """by distance back: 0, 1, ..."""


@dataclass(frozen=True)
class Heads(Answer):
    """Statistics of L x H heads over B windows of held-out text; P is the number of `roles`."""

    roles: tuple[str, ...]
    score_PLH: Estimate[np.ndarray]
    """mean attention; simultaneous Student's intervals over windows, for induction over random sequences"""
    even_P: np.ndarray
    """the same under even attention to all visible tokens"""
    entropy_LH: np.ndarray
    """mean entropy of attention, nats"""
    even_entropy: float
    profile_LHT: np.ndarray | None = None
    """mean attention by distance back, over queries with that many earlier tokens; None for pairs"""
    even_profile_T: np.ndarray | None = None
    first_copy: Estimate[float] | None = None
    """loss on random tokens, nats, over sequences; None for an encoder-decoder"""
    second_copy: Estimate[float] | None = None
    """loss on their repetition"""
    repetition_gain: Estimate[float] | None = None
    """first - second, paired"""
    where: str = ""
    """kind of attention, see `activations.ATTENTION`"""
    title = "What the heads do"

    def named(self) -> dict[tuple[int, int], str]:
        """Return (layer, head), from 0, -> role of the heads whose attention is significantly above both thresholds."""
        needed_P = np.maximum(NAMED, TIMES_EVEN * self.even_P)
        sure_PLH = self.score_PLH.low > needed_P[:, None, None]
        # Induction has priority: without a repetition such a head may attend to the first token.
        order = sorted(range(len(self.roles)), key=lambda p: self.roles[p] != "induction")
        return {(int(i), int(h)): self.roles[p] for p in reversed(order) for i, h in np.argwhere(sure_PLH[p])}

    def sentence(self) -> str:
        named, total = self.named(), self.entropy_LH.size
        counts = {role: sum(r == role for r in named.values()) for role in self.roles}
        roles = ", ".join(f"{n} {role}" for role, n in counts.items() if n) or "none is shown to have a role"
        effective, even = np.exp(self.entropy_LH.mean()), np.exp(self.even_entropy)
        gain, copies = self.repetition_gain, ""
        if gain is not None:
            copies = verdict(
                gain,
                f"; random tokens are predicted better the second time, by {gain} nats",
                f"; random tokens are predicted worse the second time (gain {gain} nats)",
                f"; that repeating random tokens helps prediction is not shown (gain {gain} nats)",
                NEGLIGIBLE,
            )
        return (
            f"Of {total} {NAMES[self.where]}: {roles}; attention has the entropy of {effective:.0f} equal weights, "
            f"even attention that of {even:.0f}{copies}."
        )

    def show(self) -> Picture:
        return replace(super().show(), title=f"What the {NAMES[self.where]} do")

    def panels(self) -> Iterator[Panel]:
        L, H = self.entropy_LH.shape
        names, heads = head_names((L, H)), NAMES[self.where]
        z, low, high = (np.reshape(x, (len(self.roles), L * H)) for x in self.score_PLH)
        template = "head {}, {}: {:.3f} [{:.3f}, {:.3f}], evenly {:.3f}"
        hover = tuple(
            said(template, names, role, z[p], low[p], high[p], self.even_P[p])
            for p, role in enumerate(self.roles)
        )
        cells = tuple(tuple(f"{v:.2f}" for v in row) for row in z) if L * H <= 24 else ()
        heat = Heat(z, "share of attention", hover, text=cells, span=(0.0, max(0.3, float(z.max()))))
        axes = Axis("head, as layer.head", names=names), Axis(names=self.roles, down=True)
        yield Panel(f"What each of the {heads} looks at", (heat,), *axes, height=300, wide=True)

        entropy_N = self.entropy_LH.ravel()
        hover = said("head {}: {:.2f} nats, as over {:.0f} tokens alike", names, entropy_N, np.exp(entropy_N))
        dots = Dots(range(L * H), entropy_N, "this model", 0, hover=hover)
        even = Line([-0.5, L * H - 0.5], [self.even_entropy] * 2, "evenly over all", 6, dashed=True)
        axes = Axis("head", names=names), Axis("entropy, nats", span=(0, self.even_entropy * 1.1))
        yield Panel(f"How widely each of the {heads} looks", (dots, even), *axes)

        if self.profile_LHT is not None and self.even_profile_T is not None:
            profile_LT = self.profile_LHT.mean(1)
            back_T = np.arange(profile_LT.shape[1]) + 1
            lines = []
            for i, profile_T in enumerate(profile_LT, 1):
                hover = said("layer {}, {} back: {:.4f}", i, back_T - 1, profile_T)
                profile_T = np.maximum(profile_T, 1e-6)
                lines.append(Line(back_T, profile_T, f"layer {i}", (i - 1) % 6, hover=hover))
            lines.append(Line(back_T, np.maximum(self.even_profile_T, 1e-6), "evenly", 6, dashed=True))
            axes = Axis("tokens back + 1", log=True), Axis("attention", log=True)
            yield Panel("How far back, mean of a layer's heads", tuple(lines), *axes)


def head_names(shape: tuple[int, int]) -> tuple[str, ...]:
    """Return "layer.head", from 1, of every head of (L, H)."""
    return tuple(f"{i + 1}.{h + 1}" for i, h in np.ndindex(shape))


@jax.jit
def head_statistics(
    weights_LHTS: jax.Array, tokens_T: jax.Array, marks_T: jax.Array, start_T: jax.Array
) -> HeadStatistics:
    """Return statistics of attention weights in one window of at least 2 tokens.

    `marks_T` is True at punctuation. `start_T` is the first token visible to each query.
    """
    T = tokens_T.shape[0]
    t_T = jnp.arange(T)
    earlier_TS = (t_T[None] < t_T[:, None]) & (t_T[None] >= start_T[:, None])
    first_TS = t_T[None] == start_T[:, None]
    same_TS = earlier_TS & (tokens_T[:, None] == tokens_T[None])
    queries_LHTS = weights_LHTS[:, :, 1:]
    log_weights = jnp.log(jnp.maximum(queries_LHTS, 1e-30))
    back_TS = t_T[:, None] - t_T[None]  # as an index: (query, distance) -> key
    by_distance = jnp.take_along_axis(weights_LHTS, jnp.maximum(back_TS, 0)[None, None], axis=-1)
    by_distance = jnp.where((back_TS >= 0)[None, None], by_distance, 0.0)
    return HeadStatistics(
        jnp.diagonal(weights_LHTS, offset=-1, axis1=2, axis2=3).mean(-1),
        (queries_LHTS * same_TS[None, None, 1:]).sum(-1).mean(-1),
        (queries_LHTS * first_TS[None, None, 1:]).sum(-1).mean(-1),
        (queries_LHTS * marks_T[None, None, None]).sum(-1).mean(-1),
        (-(queries_LHTS * log_weights).sum(-1)).mean(-1),
        by_distance.sum(2) / (T - t_T)[None, None],
    )


def even_attention(T: int, start_T: np.ndarray | int = 0) -> np.ndarray:
    """Return even attention to all visible tokens, (1, 1, T, T); `start_T` as in `head_statistics`."""
    mask_TS = np.tril(np.ones((T, T), np.float32)) * (np.arange(T)[None] >= np.reshape(start_T, (-1, 1)))
    return (mask_TS / mask_TS.sum(-1, keepdims=True))[None, None]


def window_statistics(
    weights_LHTS: np.ndarray, tokens_T: np.ndarray, marks_T: np.ndarray, document_bos: int | None = None
) -> HeadStatistics:
    """Return `head_statistics` of each layer and, as the last, of even attention: (L + 1, H) each."""
    _, H, T, _ = weights_LHTS.shape
    begins_T = np.zeros(T, bool) if document_bos is None else tokens_T == document_bos
    start_T = np.maximum.accumulate(np.where(begins_T, np.arange(T), 0))
    even_HTS = np.broadcast_to(even_attention(T, start_T)[0], (H, T, T))
    layers = (*weights_LHTS, even_HTS)
    statistics = [head_statistics(weights_HTS[None], tokens_T, marks_T, start_T) for weights_HTS in layers]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *statistics)


def repeated_random(ids_N: np.ndarray, length: int, count: int, bos_id: int, seed: int = 0) -> np.ndarray:
    """Return bos, `length` random tokens out of `ids_N`, and the same again: (count, 1 + 2 `length`) int32."""
    random = np.random.default_rng(seed)
    # Tokens are drawn without replacement if there are enough, so that nothing repeats inside a copy.
    drawn_BN = np.stack([random.choice(ids_N, length, replace=length > len(ids_N)) for _ in range(count)])
    return np.concatenate([np.full((count, 1), bos_id), drawn_BN, drawn_BN], axis=1).astype(np.int32)


def repetition(lm: LanguageModel, ids_N: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Measure induction on repeated random tokens (Olsson et al. 2022, "per-token loss").

    Returns the attention of each head in the second copy to the token after the same token in the first, (B, L, H),
    and the loss on the first and on the second copy, each (B,), without the unpredictable first token of a copy.
    """
    n = _copy_length(lm.config)
    tokens_BT = repeated_random(ids_N, n, SEQUENCES, lm.tokenizer.bos_id, seed)
    induction, nats = [], []
    for window in record_windows(lm, tokens_BT):
        diagonal_LHN = np.diagonal(window.weights(), offset=1 - n, axis1=2, axis2=3)
        induction.append(diagonal_LHN[..., 2:].mean(-1))
        nats.append(window.scores.nats_BT[0])
    nats_BT = np.stack(nats)
    return np.stack(induction), nats_BT[:, 1:n].mean(1), nats_BT[:, n + 1 :].mean(1)


def _copy_length(model: TransformerConfig) -> int:
    return max(2, min(REPEATED, (min(model.max_length, LONGEST) - 1) // 2))


def explain_heads(
    lm: LanguageModel, tokens_BT: np.ndarray, ids_N: np.ndarray, weights: Iterable[np.ndarray], seed: int = 0
) -> Heads:
    """Return statistics of every head in windows of held-out text, and on repeated random tokens out of `ids_N`.

    `weights` are the attention weights of each window, (L, H, T, T).
    """
    mark_V = punctuation_marks(lm.tokenizer, lm.config)
    # One window at a time: attention weights take most memory.
    windows = [
        window_statistics(weights_LHTS, tokens_T, mark_V[tokens_T], lm.document_bos)
        for weights_LHTS, tokens_T in zip(weights, tokens_BT, strict=True)
    ]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *windows)
    model_heads = jax.tree.map(lambda array: array[:, :-1], stacked)
    even = jax.tree.map(lambda array: array[:, -1].mean((0, 1)), stacked)
    induction_BLH, first_B, second_B = repetition(lm, ids_N, seed)
    measured = (*model_heads[:4], induction_BLH)
    comparisons = sum(score_BLH[0].size for score_BLH in measured)
    n = _copy_length(lm.config)
    scores = zip(*(mean_estimate(x, comparisons) for x in measured), strict=True)
    return Heads(
        roles=ROLES,
        score_PLH=Estimate(*map(np.stack, scores)),
        even_P=np.array([*map(float, even[:4]), np.mean(1 / (1 + np.arange(n + 1, 2 * n + 1)))]),
        entropy_LH=model_heads.entropy_LH.mean(0),
        even_entropy=float(even.entropy_LH),
        profile_LHT=model_heads.profile_LHT.mean(0),
        even_profile_T=even.profile_LHT,
        first_copy=mean_estimate(first_B),
        second_copy=mean_estimate(second_B),
        repetition_gain=mean_estimate(first_B - second_B),
    )


def punctuation_marks(tokenizer: AnyTokenizer, model: TransformerConfig) -> np.ndarray:
    """Return True for the ids of the model that are punctuation, (V,)."""
    mark_V = np.zeros(model.vocab_size, bool)
    kinds_V = token_kinds(tokenizer)[: model.vocab_size]
    mark_V[: len(kinds_V)] = kinds_V == KINDS.index("punctuation")
    return mark_V


@dataclass(frozen=True)
class AttentionMaps(Answer):
    """Attention of L x H heads on a text."""

    pieces: Pieces
    weights_LHTS: np.ndarray
    """attention of query t to position s; rows sum to 1"""
    entropy_LHT: np.ndarray
    """of each query, nats"""
    where: str = ""
    """kind of attention, see `activations.ATTENTION`"""
    title = "Where attention looks"

    def sentence(self) -> str:
        L, H, T, _ = self.weights_LHTS.shape
        last_LHS = self.weights_LHTS[:, :, -1]
        mean_S = last_LHS.mean((0, 1))
        layer, head = np.unravel_index(self.entropy_LHT[:, :, -1].argmin(), (L, H))
        sharpest = int(last_LHS[layer, head].argmax())
        most = ", ".join(f"{self.pieces[s]!r} {mean_S[s]:.2f}" for s in np.argsort(-mean_S)[:3])
        focused = f"head {head + 1} of layer {layer + 1}"
        last = f"In the {self.where} the last token" if self.where else "The last token"
        return (
            f"{last} takes most from {most} (mean of {L * H} heads; even attention takes {1 / T:.2f}); the most "
            f"focused, {focused}, gives {last_LHS[layer, head, sharpest]:.2f} to {self.pieces[sharpest]!r}."
        )

    def panels(self) -> Iterator[Panel]:
        title = f"Attention of the {self.where}" if self.where else "Attention on the text"
        return map_panels(title, self.weights_LHTS, self.pieces, self.pieces)


def map_panels(title: str, weights_LHTS: np.ndarray, queries: Pieces, keys: Pieces) -> Iterator[Panel]:
    """Yield attention maps, queries downwards, of the mean of all heads and of each head."""
    L, H, T, _ = weights_LHTS.shape
    maps = {"mean of all heads": weights_LHTS.mean((0, 1))}
    maps |= {f"layer {i + 1}, head {h + 1}": weights_LHTS[i, h] for i, h in np.ndindex(L, H)}
    axes = (
        Axis("looks at", names=tuple(map(visible, keys))),
        Axis("token", names=tuple(map(visible, queries)), down=True),
    )
    height = int(np.clip(120 + 26 * T, 260, 720))
    for choice, weights_TS in maps.items():
        heat = Heat(weights_TS, "attention", hover_template="{y} takes {z} from {x}")
        yield Panel(title, (heat,), *axes, height=height, choice=choice, wide=True)


def attention_maps(weights_LHTS: np.ndarray, pieces: tuple[str, ...], where: str = "") -> AttentionMaps:
    """Return the attention on one text of T `pieces`."""
    return AttentionMaps(pieces, weights_LHTS, attention_entropy(weights_LHTS), where)


def attention_entropy(weights_LHTS: np.ndarray) -> np.ndarray:
    """Return the entropy of each query's attention, nats, (L, H, T)."""
    return -(weights_LHTS * np.log(np.maximum(weights_LHTS, 1e-30))).sum(-1)
