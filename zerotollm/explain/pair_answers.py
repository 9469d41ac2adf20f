"""The questions answered for an encoder-decoder, on one text and on held-out pairs: the same measures as a decoder's.

What a decoder is asked and this is not: induction. It is seen on random tokens that are repeated, and no source leads
to these.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.ablation import ablation, with_output_biases
from zerotollm.explain.activations import Scores
from zerotollm.explain.alignment import aligned
from zerotollm.explain.attention import Heads, attention_maps
from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.estimates import mean_estimate
from zerotollm.explain.layers import PARTS, Layers, explain_vectors, frequent_labels, part_labels
from zerotollm.explain.learning import Learning, measure_learning
from zerotollm.explain.pair_activations import (
    Inside,
    Pair,
    ablated_losses,
    decoder_activations,
    even_pairs,
    look_into_pair,
    mean_written,
    padded,
    pair_scores,
    score_pair,
    text_pair,
)
from zerotollm.explain.prediction import predict_tokens
from zerotollm.explain.words import KINDS, readable_token, token_kinds
from zerotollm.model.config import TransformerConfig

PAIRS = 96
"""Held-out pairs that go through the model once, or once a checkpoint ..."""
ABLATED = 24
"""... and as many of them once without each head."""
ROLES = {
    "encoder": (
        "previous token", "next token", "same token", "first token", "end of the sentence", "punctuation",
    ),
    "decoder": ("previous token", "same token", "first token", "punctuation"),
    "cross": ("same place", "same token", "first token", "end of the sentence", "punctuation"),
}  # fmt: skip
"""Of the encoder's attention to itself, of the decoder's, and of cross attention. "same token" is another place of the
source with the query's own token, an earlier place of what is written, and for cross attention a place of the source
with the token that is written next; "same place" is as far in the source as the query in the target."""


class RoleScores(NamedTuple):
    """Of one pair and P roles."""

    score_PLH: np.ndarray
    """mean attention"""
    entropy_LH: np.ndarray
    """nats"""


def text_answers(
    params: Any, model: TransformerConfig, tokenizer: Tokenizer, source: str, target: str
) -> dict[str, Any]:
    """What is seen on one source and on what the model made of it: fields of an `Explanation`.

    The prediction is that in the middle of the target.
    """
    pair = text_pair(tokenizer, source, target, model.max_length)
    inside = look_into_pair(params, model, pair, tokenizer.bos_id)
    inputs_T = inside.inputs_BT[0, : len(pair.target_T)]
    half = (len(inputs_T) + 1) // 2
    seen = decoder_activations(inside, params, model, half)
    maps = {
        side: attention_maps(inside.weights(side), tuple(readable_token(tokenizer, i) for i in ids), side)
        for side, ids in (("encoder", pair.source_S), ("decoder", inputs_T))
    }
    return {
        "prediction": predict_tokens(params, model, tokenizer, inputs_T[:half], seen),
        "attention": maps["decoder"],
        "encoder_attention": maps["encoder"],
        "alignment": aligned(inside, tokenizer),
    }


def held_out_answers(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    fresh: Iterable[Any] = (),
) -> dict[str, Any]:
    """What is measured on held-out pairs: fields of an `Explanation`. `fresh` are parameters that learned nothing."""
    pairs = even_pairs(pairs, PAIRS)
    step = max(1, len(pairs) // ABLATED)
    embedding_VD = np.asarray(params["embedding"])
    scores = []
    residual: dict[str, list[np.ndarray]] = {"encoder": [], "decoder": []}
    roles: dict[str, list[tuple[RoleScores, RoleScores]]] = {side: [] for side in ROLES}
    mark_V = marks(tokenizer, model)
    for pair in pairs:
        inside = look_into_pair(params, model, pair, tokenizer.bos_id)
        scores.append(pair_scores(inside, inside.decoder.x_BTD, params, model))
        for side, streams in residual.items():
            streams.append(inside.residual(side, embedding_VD))
        for side in ROLES:
            roles[side].append(pair_roles(inside, side, mark_V))
    confidence_N, correct_N = (
        np.concatenate([getattr(s, name) for s in scores]) for name in ("confidence_T", "correct_T")
    )
    nats_BT = padded([score.nats_T for score in scores], np.nan)
    # Places are compared within targets that reach as far: the longer half of them.
    T = int(np.median([len(score.nats_T) for score in scores]))
    whole_BT = nats_BT[~np.isnan(nats_BT[:, :T]).any(1), :T]
    fresh_residual = [_streams(params_, model, tokenizer, pairs) for params_ in fresh]
    sides = {
        side: [
            np.concatenate(x, axis=1)
            for x in (residual[side], *(streams[side] for streams in fresh_residual))
        ]
        for side in residual
    }
    number_N = np.repeat(np.arange(len(pairs)), [len(score.nats_T) for score in scores])
    answers = {
        "calibration": calibration(confidence_N, correct_N, number_N),
        "positions": loss_by_position(Scores(whole_BT, whole_BT, whole_BT), "target") if T > 1 else None,
        "encoder_layers": _layers([pair.source_S for pair in pairs], sides["encoder"], True),
        "layers": _layers([pair.target_T for pair in pairs], sides["decoder"], False, tokenizer.bos_id),
    }
    biased, biased_model = with_output_biases(params, model)

    def insides() -> Iterator[Inside]:
        return (look_into_pair(biased, biased_model, pair, tokenizer.bos_id) for pair in pairs[::step])

    means = mean_written(insides(), biased, biased_model)
    losses = [
        (
            *ablated_losses(inside, biased, biased_model),
            ablated_losses(inside, biased, biased_model, means)[1],
        )
        for inside in insides()
    ]
    loss = float(np.mean([whole for whole, _, _ in losses]))
    count = sum(len(pair.target_T) for pair in pairs[::step])
    for side, prefix in (("encoder", "encoder_"), ("decoder", ""), ("cross", "cross_")):
        answers[f"{prefix}heads"] = _heads(side, roles[side])
        zero_BLH, mean_BLH = (np.stack([run[k][side] - run[0] for run in losses]) for k in (1, 2))
        answers[f"{prefix}ablation"] = ablation(loss, count, side, zero_BLH, mean_BLH)
    return answers


def marks(tokenizer: Tokenizer, model: TransformerConfig) -> np.ndarray:
    """True for ids that are punctuation, (V,)."""
    mark_V = np.zeros(model.vocab_size, bool)
    kinds_V = token_kinds(tokenizer)[: model.vocab_size]
    mark_V[: len(kinds_V)] = kinds_V == KINDS.index("punctuation")
    return mark_V


def pair_roles(inside: Inside, side: str, mark_V: np.ndarray) -> tuple[RoleScores, RoleScores]:
    """What every head of a side looks at in one pair, and what even attention would."""
    weights_LHTS, pair = inside.weights(side), inside.pair
    written_T = inside.inputs_BT[0, : len(pair.target_T)]
    queries_T, keys_S = {
        "encoder": (pair.source_S, pair.source_S),
        "decoder": (written_T, written_T),
        "cross": (pair.target_T, pair.source_S),
    }[side]
    T, S = len(queries_T), len(keys_S)
    seen_TS = np.tril(np.ones((T, S))) if side == "decoder" else np.ones((T, S))
    even_TS = seen_TS / seen_TS.sum(-1, keepdims=True)
    at = places(side, queries_T, keys_S, mark_V)
    return role_scores(weights_LHTS, at), role_scores(even_TS[None, None], at)


def places(side: str, queries_T: np.ndarray, keys_S: np.ndarray, mark_V: np.ndarray) -> dict[str, np.ndarray]:
    """Of every role of a side the places it is about, (T, S) of True; see `ROLES`."""
    T, S = len(queries_T), len(keys_S)
    back_TS = np.arange(T)[:, None] - np.arange(S)
    same_TS = queries_T[:, None] == keys_S
    if side != "cross":
        same_TS &= (back_TS > 0) if side == "decoder" else (back_TS != 0)
    nearest_T = np.rint(np.arange(T) * (S - 1) / max(T - 1, 1)).astype(int)
    column_S = np.arange(S)[None].repeat(T, 0)
    every = {
        "previous token": back_TS == 1,
        "next token": back_TS == -1,
        "same token": same_TS,
        "same place": column_S == nearest_T[:, None],
        "first token": column_S == 0,
        "end of the sentence": column_S == S - 1,
        "punctuation": mark_V[keys_S][None].repeat(T, 0),
    }
    return {role: every[role] for role in ROLES[side]}


def role_scores(weights_LHTS: np.ndarray, at: dict[str, np.ndarray]) -> RoleScores:
    """Mean attention to each role's places, over the queries that have such a place; 0 where none has. Of the other
    roles, "first token", "end of the sentence" and "punctuation" are over all queries."""
    scores = []
    for role, place_TS in at.items():
        asked_T = np.ones(len(place_TS), bool)
        if role in ("previous token", "next token"):
            asked_T = place_TS.any(-1)
        given_LHT = (weights_LHTS * place_TS).sum(-1)[..., asked_T]
        scores.append(given_LHT.mean(-1) if asked_T.any() else np.zeros(weights_LHTS.shape[:2]))
    logs_LHTS = np.log(np.maximum(weights_LHTS, 1e-30))
    return RoleScores(np.stack(scores), -(weights_LHTS * logs_LHTS).sum(-1).mean(-1))


def _heads(side: str, seen: Sequence[tuple[RoleScores, RoleScores]]) -> Heads:
    score_BPLH = np.stack([own.score_PLH for own, _ in seen])
    scores = mean_estimate(score_BPLH, comparisons=score_BPLH[0].size)
    even = [even for _, even in seen]
    return Heads(
        roles=ROLES[side],
        score_PLH=scores,
        even_P=np.mean([e.score_PLH[:, 0, 0] for e in even], axis=0),
        entropy_LH=np.mean([own.entropy_LH for own, _ in seen], axis=0),
        even_entropy=float(np.mean([e.entropy_LH for e in even])),
        where=side,
    )


def _streams(
    params: Any, model: TransformerConfig, tokenizer: Tokenizer, pairs: Sequence[Pair]
) -> dict[str, list[np.ndarray]]:
    """The residual stream of each pair, (M, S or T, D), of "encoder" and "decoder"."""
    embedding_VD, streams = np.asarray(params["embedding"]), {"encoder": [], "decoder": []}
    for pair in pairs:
        inside = look_into_pair(params, model, pair, tokenizer.bos_id)
        for side, residual in streams.items():
            residual.append(inside.residual(side, embedding_VD))
    return streams


def _layers(
    texts: Sequence[np.ndarray], streams: Sequence[np.ndarray], encoder: bool, bos_id: int = 0
) -> Layers:
    """Vectors of sources, or of what of the targets is written when the next token is predicted: `streams` are the
    model's own, (M, N, D), and after it those of models with fresh parameters."""
    ids = texts if encoder else [np.append(bos_id, text_T[:-1]) for text_T in texts]
    number_N = np.repeat(np.arange(len(texts)), [len(text_T) for text_T in texts])
    following = [np.append(text_T[1:], -1) for text_T in texts] if encoder else texts
    before = [np.append(-1, text_T[:-1]) for text_T in texts]
    tasks = {"the next token": following} | ({"the token before": before} if encoder else {})
    labels = {
        name: frequent_labels(np.concatenate(values).astype(np.int64)) for name, values in tasks.items()
    }
    part_N = np.concatenate([part_labels(len(text_T)) for text_T in texts])
    labels |= {f"the place in the sentence (of {PARTS} parts)": part_N}
    return explain_vectors(
        streams[0],
        np.concatenate(ids),
        number_N,
        number_N,
        labels,
        "encoder" if encoder else "decoder",
        fresh=streams[1:],
    )


def learning(
    checkpoints: Iterable[tuple[int, Any]],
    model: TransformerConfig,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    counts_V: np.ndarray,
) -> Learning:
    """The loss on held-out targets, over the checkpoints."""
    pairs = even_pairs(pairs, PAIRS)

    def nats(params: Any) -> np.ndarray:
        rows = [score_pair(params, model, pair, tokenizer.bos_id).nats_T for pair in pairs]
        return padded(rows, np.nan)

    windows_BW = padded([np.append(tokenizer.bos_id, pair.target_T) for pair in pairs], tokenizer.eos_id)
    return measure_learning(
        ((step, nats(params)) for step, params in checkpoints), tokenizer, windows_BW, counts_V
    )
