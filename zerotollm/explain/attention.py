"""How does attention stay focused? What each head looks at, on a text and measured over held-out text.

Heads are known by what they look at: the token before (previous-token heads) and what came after the same token
earlier (induction heads: Olsson et al. 2022, arXiv:2209.11895), the same token, the first one (attention sinks: Xiao
et al. 2024, arXiv:2309.17453), punctuation (Clark et al. 2019, arXiv:1906.04341). Whether one matters is another
question: `ablation.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.activations import LONGEST, look_into_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import NEGLIGIBLE, Estimate, mean_estimate, verdict
from zerotollm.explain.words import KINDS, token_kinds
from zerotollm.model.config import TransformerConfig

ROLES = ("previous token", "same token", "first token", "punctuation", "induction")
NAMES = {
    "": "heads",
    "encoder": "heads of the encoder",
    "decoder": "heads of the decoder",
    "cross": "heads of cross attention",
}
"""How the heads of each kind of attention are called."""
NAMED = 0.3
"""Share of its attention that a head must give to a place, on average, to be named after it ..."""
TIMES_EVEN = 3.0
"""... and so many times what even attention would give."""
REPEATED = 50
"""Random tokens that are repeated, at most."""
SEQUENCES = 8


class HeadStatistics(NamedTuple):
    """Of one window, of L x H heads: mean attention over queries from the second on."""

    previous_LH: jax.Array
    same_LH: jax.Array
    """to all earlier places with the query's own token together"""
    first_LH: jax.Array
    punctuation_LH: jax.Array
    entropy_LH: jax.Array
    """nats"""
    profile_LHT: jax.Array
    """by distance 0, 1, ... back"""


@dataclass(frozen=True)
class Heads(Answer):
    """What each of L x H heads does over B windows of held-out text; P is the number of `ROLES`."""

    roles: tuple[str, ...]
    score_PLH: Estimate
    """mean attention, with Student's intervals over windows (of induction: over random sequences); all P x L x H hold
    together"""
    even_P: np.ndarray
    """the same of a head that looks evenly at all it may see"""
    entropy_LH: np.ndarray
    """mean entropy of attention, nats"""
    even_entropy: float
    profile_LHT: np.ndarray | None = None
    """mean attention by distance back, over the queries that have so long a past; None where texts are short pairs"""
    even_profile_T: np.ndarray | None = None
    first_copy: Estimate | None = None
    """loss on random tokens, nats, over sequences; None of an encoder-decoder"""
    second_copy: Estimate | None = None
    """loss where they come for the second time"""
    repetition_gain: Estimate | None = None
    """first - second, paired"""
    where: str = ""
    """"encoder", "decoder" or "cross" of a model that has all three"""

    def named(self) -> dict[tuple[int, int], str]:
        """(layer, head), from 0, -> its role, where its attention is above both thresholds: 95 % for all together."""
        needed_P = np.maximum(NAMED, TIMES_EVEN * self.even_P)
        sure_PLH = self.score_PLH.low > needed_P[:, None, None]
        # Induction first: such a head may also look at the first token where there is nothing to repeat.
        order = sorted(range(len(self.roles)), key=lambda p: self.roles[p] != "induction")
        return {(int(i), int(h)): self.roles[p] for p in reversed(order) for i, h in np.argwhere(sure_PLH[p])}

    def sentence(self) -> str:
        named, total = self.named(), self.entropy_LH.size
        counts = {role: sum(r == role for r in named.values()) for role in self.roles}
        found = ", ".join(f"{n} {role}" for role, n in counts.items() if n) or "none is shown to have a role"
        own, even = np.exp(self.entropy_LH.mean()), np.exp(self.even_entropy)
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
            f"Of {total} {NAMES[self.where]}: {found}; attention is as open as over {own:.0f} tokens alike, "
            f"where without a choice it were {even:.0f}{copies}."
        )


def head_statistics(
    weights_LHTS: jax.Array, tokens_T: jax.Array, marks_T: jax.Array, start_T: jax.Array | None = None
) -> HeadStatistics:
    """Statistics of attention weights on one window; `marks_T` is True at punctuation, `start_T` is where the text that
    each query may see begins: the first token of its document, by default 0. Needs T >= 2."""
    T = tokens_T.shape[0]
    start_T = jnp.zeros(T, int) if start_T is None else start_T
    t_T = jnp.arange(T)
    earlier_TS = (t_T[None] < t_T[:, None]) & (t_T[None] >= start_T[:, None])
    first_TS = t_T[None] == start_T[:, None]
    same_TS = earlier_TS & (tokens_T[:, None] == tokens_T[None])
    queries_LHTS = weights_LHTS[:, :, 1:]

    def mean(share_LHT):
        return share_LHT.mean(-1)

    log_weights = jnp.log(jnp.maximum(queries_LHTS, 1e-30))
    back_TS = t_T[:, None] - t_T[None]  # read as (query, distance) -> key
    by_distance = jnp.take_along_axis(weights_LHTS, jnp.maximum(back_TS, 0)[None, None], axis=-1)
    by_distance = jnp.where((back_TS >= 0)[None, None], by_distance, 0.0)
    return HeadStatistics(
        jnp.diagonal(weights_LHTS, offset=-1, axis1=2, axis2=3).mean(-1),
        mean((queries_LHTS * same_TS[None, None, 1:]).sum(-1)),
        mean((queries_LHTS * first_TS[None, None, 1:]).sum(-1)),
        mean((queries_LHTS * marks_T[None, None, None]).sum(-1)),
        mean(-(queries_LHTS * log_weights).sum(-1)),
        by_distance.sum(2) / (T - t_T)[None, None],
    )


def even_attention(T: int, start_T: np.ndarray | int = 0) -> np.ndarray:
    """What a head that sees all of its past alike gives, (1, 1, T, T); `start_T` as in `head_statistics`."""
    mask_TS = np.tril(np.ones((T, T), np.float32)) * (np.arange(T)[None] >= np.reshape(start_T, (-1, 1)))
    return (mask_TS / mask_TS.sum(-1, keepdims=True))[None, None]


_one_layer = jax.jit(head_statistics)


def window_statistics(
    weights_LHTS: np.ndarray, tokens_T: np.ndarray, marks_T: np.ndarray, document_bos: int | None = None
) -> HeadStatistics:
    """`head_statistics` layer by layer, and of even attention as the last: (L + 1, H) each."""
    _, H, T, _ = weights_LHTS.shape
    begins_T = np.zeros(T, bool) if document_bos is None else tokens_T == document_bos
    start_T = np.maximum.accumulate(np.where(begins_T, np.arange(T), 0))
    even_HTS = np.broadcast_to(even_attention(T, start_T)[0], (H, T, T))
    each = [
        _one_layer(weights_HTS[None], tokens_T, marks_T, start_T) for weights_HTS in (*weights_LHTS, even_HTS)
    ]
    return HeadStatistics(*(np.concatenate(arrays) for arrays in zip(*each, strict=True)))


def _induction(weights_LHTS: np.ndarray) -> np.ndarray:
    """Attention of queries in the second of two copies to what came after their token in the first, (L, H)."""
    n = weights_LHTS.shape[-1] // 2
    return np.diagonal(weights_LHTS, offset=1 - n, axis1=2, axis2=3)[..., 2:].mean(-1)


def repeated_random(ids_N: np.ndarray, length: int, count: int, bos_id: int, seed: int = 0) -> np.ndarray:
    """bos, random tokens out of `ids_N`, and the same once more: (count, 1 + 2 `length`) int32."""
    random = np.random.default_rng(seed)
    # No token twice in a copy, where there are enough of them: nothing is repeated but the whole.
    drawn_BN = np.stack([random.choice(ids_N, length, replace=length > len(ids_N)) for _ in range(count)])
    return np.concatenate([np.full((count, 1), bos_id), drawn_BN, drawn_BN], axis=1).astype(np.int32)


def repetition(params: Any, model: TransformerConfig, tokenizer: Tokenizer, ids_N: np.ndarray, seed: int = 0):
    """Induction by behaviour and by attention, on repeated random tokens (Olsson et al. 2022, "per-token loss").

    Returns the attention of each head, (B, L, H), and the loss on the first and on the second copy, each (B,). The
    first token of each copy is left out: nothing before it says which it will be.
    """
    n = max(2, min(REPEATED, (min(model.max_length, LONGEST) - 1) // 2))
    tokens_BT = repeated_random(ids_N, n, SEQUENCES, tokenizer.bos_id, seed)
    induction, nats = [], []
    for window in look_into_windows(params, tokens_BT, model=model):
        induction.append(_induction(window.weights()))
        nats.append(window.scores.nats_BT[0])
    nats_BT = np.stack(nats)
    return np.stack(induction), nats_BT[:, 1:n].mean(1), nats_BT[:, n + 1 :].mean(1)


def explain_heads(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    tokens_BT: np.ndarray,
    ids_N: np.ndarray,
    weights: Iterable[np.ndarray] | None = None,
    document_bos: int | None = None,
    seed: int = 0,
) -> Heads:
    """What every head looks at in windows of held-out text, and in random tokens out of `ids_N` that are repeated.

    `weights`, (L, H, T, T) of each window, where they are there already. `document_bos` as in `forward.rows_of`.
    """
    mark_V = np.append(token_kinds(tokenizer) == KINDS.index("punctuation"), np.zeros(model.vocab_size, bool))
    if weights is None:
        # A window has one token more than is looked at: the last is only predicted.
        windows_BW = np.pad(tokens_BT, ((0, 0), (0, 1)))
        seen_ = look_into_windows(params, windows_BW, model=model, document_bos=document_bos)
        weights = (window.weights() for window in seen_)
    # One window after the other: attention weights are the largest thing here.
    seen = [
        window_statistics(weights_LHTS, tokens_T, mark_V[tokens_T], document_bos)
        for weights_LHTS, tokens_T in zip(weights, tokens_BT, strict=True)
    ]
    all_ = HeadStatistics(*(np.stack(arrays) for arrays in zip(*seen, strict=True)))
    stats = HeadStatistics(*(array[:, :-1] for array in all_))
    even = HeadStatistics(*(array[:, -1].mean((0, 1)) for array in all_))
    induction_BLH, first_B, second_B = repetition(params, model, tokenizer, ids_N, seed)
    n = max(2, min(REPEATED, (min(model.max_length, LONGEST) - 1) // 2))
    measured = (*stats[:4], induction_BLH)
    comparisons = sum(score_BLH[0].size for score_BLH in measured)
    later_N = np.arange(n + 1, 2 * n + 1)
    return Heads(
        roles=ROLES,
        score_PLH=Estimate(
            *map(np.stack, zip(*(mean_estimate(x, comparisons) for x in measured), strict=True))
        ),
        even_P=np.array([*map(float, even[:4]), np.mean(1 / (1 + later_N))]),
        entropy_LH=stats.entropy_LH.mean(0),
        even_entropy=float(even.entropy_LH),
        profile_LHT=stats.profile_LHT.mean(0),
        even_profile_T=even.profile_LHT,
        first_copy=mean_estimate(first_B),
        second_copy=mean_estimate(second_B),
        repetition_gain=mean_estimate(first_B - second_B),
    )


@dataclass(frozen=True)
class AttentionMaps(Answer):
    """Attention of L x H heads on a text."""

    pieces: tuple[str, ...]
    weights_LHTS: np.ndarray
    """how much query t takes from position s; rows sum to 1"""
    entropy_LHT: np.ndarray
    """nats, of each query"""
    where: str = ""
    """"encoder" or "decoder" of a model that has both"""

    def sentence(self) -> str:
        L, H, T, _ = self.weights_LHTS.shape
        last_LHS = self.weights_LHTS[:, :, -1]
        mean_S = last_LHS.mean((0, 1))
        layer, head = np.unravel_index(self.entropy_LHT[:, :, -1].argmin(), (L, H))
        sharpest = int(last_LHS[layer, head].argmax())
        before = np.argsort(-mean_S)[:3]
        most = ", ".join(f"{self.pieces[s]!r} {mean_S[s]:.2f}" for s in before)
        focused = f"head {head + 1} of layer {layer + 1}"
        last = f"In the {self.where} the last token" if self.where else "The last token"
        return (
            f"{last} takes most from {most} (mean of {L * H} heads; evenly it were {1 / T:.2f}); the most "
            f"focused, {focused}, gives {last_LHS[layer, head, sharpest]:.2f} to {self.pieces[sharpest]!r}."
        )


def attention_maps(weights_LHTS: np.ndarray, pieces: tuple[str, ...], where: str = "") -> AttentionMaps:
    """Attention on one text, from `look_inside(...).weights_LBHTS[:, 0]`."""
    log_weights = np.log(np.maximum(weights_LHTS, 1e-30))
    return AttentionMaps(pieces, weights_LHTS, -(weights_LHTS * log_weights).sum(-1), where)
