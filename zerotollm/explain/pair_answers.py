"""Answers for an encoder-decoder, on one text and on held-out pairs, by the same measures as for a decoder.

Induction is missing: it is measured on repeated random tokens, for which there is no source.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.ablation import ablate
from zerotollm.explain.activations import LanguageModel, Recording
from zerotollm.explain.alignment import align
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import Heads, attention_entropy, attention_maps, punctuation_marks
from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.estimates import mean_estimate
from zerotollm.explain.layers import PARTS, Layers, explain_vectors, frequent_labels, part_labels
from zerotollm.explain.learning import Learning, measure_learning
from zerotollm.explain.pair_activations import Pair, even_pairs, pad_rows, record_pair, score_pair, text_pair
from zerotollm.explain.prediction import predict
from zerotollm.explain.words import readable_token
from zerotollm.training.lora import Params

PAIRS = 96
"""Maximum held-out pairs that are measured, at each checkpoint."""
ABLATED = 24
"""Maximum pairs on which each head is ablated."""
ROLES = {
    "encoder": (
        "previous token", "next token", "same token", "first token", "end of the sentence", "punctuation",
    ),
    "decoder": ("previous token", "same token", "first token", "punctuation"),
    "cross": ("same place", "same token", "first token", "end of the sentence", "punctuation"),
}  # fmt: skip
"""Roles of heads by kind of attention. "same token" is another occurrence of the query's token, for cross attention of
the token that is predicted. "same place" is the source token at the same fraction of its sentence."""


RoleScores = tuple[np.ndarray, np.ndarray]
"""Mean attention of L x H heads in one pair to the tokens of P roles, (P, L, H), and its entropy in nats, (L, H)."""


def text_answers(lm: LanguageModel, source: str, target: str) -> dict[str, Answer]:
    """Return the answers on one source and its translation, by field of an `Explanation`.

    The prediction is that in the middle of the target.
    """
    tokenizer = lm.tokenizer
    pair = text_pair(tokenizer, source, target, lm.config.max_length)
    recording = record_pair(lm, pair)
    inputs_T = recording.row.tokens_1S[0, : len(pair.target_T)]
    half = (len(inputs_T) + 1) // 2
    maps = {
        kind: attention_maps(recording.weights(kind), tuple(readable_token(tokenizer, i) for i in ids), kind)
        for kind, ids in (("encoder", pair.source_S), ("decoder", inputs_T))
    }
    return {
        "prediction": predict(lm, inputs_T[:half], recording.decoder_activations(half)),
        "attention": maps["decoder"],
        "encoder_attention": maps["encoder"],
        "alignment": align(recording, pair, tokenizer),
    }


def held_out_answers(
    lm: LanguageModel, pairs: Sequence[Pair], fresh: Iterable[Params] = ()
) -> dict[str, Answer | None]:
    """Return the answers on held-out pairs, by field of an `Explanation`. `fresh` are parameters without training."""
    pairs = even_pairs(pairs, PAIRS)
    mark_V = punctuation_marks(lm.tokenizer, lm.config)
    scores, roles = [], {kind: [] for kind in ROLES}

    def streams_of(recordings: Iterable[Recording]) -> list[np.ndarray]:
        """Return the vectors of the encoder and of the decoder, (M, N, D) each."""
        residuals = ([recording.residual(stack) for stack in recording.stacks] for recording in recordings)
        return [np.concatenate(stack, axis=1) for stack in zip(*residuals, strict=True)]

    def record_all() -> Iterator[Recording]:
        """Record all pairs, and keep scores and roles on the way."""
        for pair in pairs:
            recording = record_pair(lm, pair)
            scores.append(recording.scores())
            for kind, kind_roles in roles.items():
                kind_roles.append(pair_roles(recording, pair, kind, mark_V))
            yield recording

    models = [streams_of(record_all())]
    for params in fresh:
        models.append(streams_of(record_pair(lm._replace(params=params), pair) for pair in pairs))
    encoder, decoder = zip(*models, strict=True)
    sources, targets = zip(*pairs, strict=True)
    lengths = [len(target_T) for target_T in targets]
    nats, confidence, correct = zip(*scores, strict=True)
    confidence_N, correct_N = (np.concatenate(x, axis=1)[0] for x in (confidence, correct))
    nats_BT = pad_rows([nats_1T[0] for nats_1T in nats], np.nan)
    # Positions are compared within the longer half of the targets, which all reach the last one.
    T = int(np.median(lengths))
    long_BT = nats_BT[~np.isnan(nats_BT[:, :T]).any(1), :T]
    answers: dict[str, Answer | None] = {
        "calibration": calibration(confidence_N, correct_N, np.repeat(np.arange(len(pairs)), lengths)),
        "positions": loss_by_position(long_BT, "target") if T > 1 else None,
        "encoder_layers": _layers(sources, encoder, "encoder"),
        "layers": _layers(targets, decoder, "decoder", lm.tokenizer.bos_id),
    }
    some = pairs[:: max(1, len(pairs) // ABLATED)]
    ablations = ablate(lm, lambda biased: (record_pair(biased, pair) for pair in some))
    for kind, prefix in (("encoder", "encoder_"), ("decoder", ""), ("cross", "cross_")):
        answers[f"{prefix}heads"] = pair_heads(kind, roles[kind])
        answers[f"{prefix}ablation"] = ablations[kind]
    return answers


def pair_roles(recording: Recording, pair: Pair, kind: str, mark_V: np.ndarray) -> tuple[RoleScores, ...]:
    """Return the role scores of every head of a kind in one pair, and those of even attention."""
    written_T = recording.row.tokens_1S[0, : len(pair.target_T)]
    queries_T, keys_S = {
        "encoder": (pair.source_S, pair.source_S),
        "decoder": (written_T, written_T),
        "cross": (pair.target_T, pair.source_S),
    }[kind]
    visible_TS = np.ones((len(queries_T), len(keys_S)))
    visible_TS = np.tril(visible_TS) if kind == "decoder" else visible_TS
    even_TS = visible_TS / visible_TS.sum(-1, keepdims=True)
    masks = role_masks(kind, queries_T, keys_S, mark_V)
    return role_scores(recording.weights(kind), masks), role_scores(even_TS[None, None], masks)


def role_masks(
    kind: str, queries_T: np.ndarray, keys_S: np.ndarray, mark_V: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the query-key pairs of each role in `ROLES`, (T, S) of True."""
    T, S = len(queries_T), len(keys_S)
    back_TS = np.arange(T)[:, None] - np.arange(S)
    same_TS = queries_T[:, None] == keys_S
    if kind != "cross":
        same_TS &= (back_TS > 0) if kind == "decoder" else (back_TS != 0)
    nearest_T = np.rint(np.arange(T) * (S - 1) / max(T - 1, 1)).astype(int)
    column_S = np.arange(S)[None].repeat(T, 0)
    masks = {
        "previous token": back_TS == 1,
        "next token": back_TS == -1,
        "same token": same_TS,
        "same place": column_S == nearest_T[:, None],
        "first token": column_S == 0,
        "end of the sentence": column_S == S - 1,
        "punctuation": mark_V[keys_S][None].repeat(T, 0),
    }
    return {role: masks[role] for role in ROLES[kind]}


def role_scores(weights_LHTS: np.ndarray, masks: dict[str, np.ndarray]) -> RoleScores:
    """Return the mean attention to the tokens of each role, over all queries.

    For the previous and the next token, queries without one are left out; 0 if none has one.
    """
    scores = []
    for role, mask_TS in masks.items():
        used_T = mask_TS.any(-1) if role in ("previous token", "next token") else np.ones(len(mask_TS), bool)
        share_LHT = (weights_LHTS * mask_TS).sum(-1)[..., used_T]
        scores.append(share_LHT.mean(-1) if used_T.any() else np.zeros(weights_LHTS.shape[:2]))
    return np.stack(scores), attention_entropy(weights_LHTS).mean(-1)


def pair_heads(kind: str, scores: Sequence[tuple[RoleScores, RoleScores]]) -> Heads:
    """Return the answer to the `pair_roles` of every pair."""
    heads, even = zip(*scores, strict=True)
    (score_BPLH, entropy_BLH), (even_BPLH, even_BLH) = (
        map(np.stack, zip(*pairs, strict=True)) for pairs in (heads, even)
    )
    return Heads(
        roles=ROLES[kind],
        score_PLH=mean_estimate(score_BPLH, comparisons=score_BPLH[0].size),
        even_P=even_BPLH[:, :, 0, 0].mean(0),
        entropy_LH=entropy_BLH.mean(0),
        even_entropy=float(even_BLH.mean()),
        where=kind,
    )


def _layers(
    texts: Sequence[np.ndarray], streams: Sequence[np.ndarray], where: str, bos_id: int = 0
) -> Layers:
    """Return the answer for the vectors, (M, N, D), of sources or of the decoder's inputs of targets.

    The first of `streams` is the model's, the others are of models with fresh parameters.
    """
    number_N = np.repeat(np.arange(len(texts)), [len(text_T) for text_T in texts])
    if where == "encoder":
        inputs = texts
        tasks = {
            "the next token": [np.append(text_T[1:], -1) for text_T in texts],
            "the token before": [np.append(-1, text_T[:-1]) for text_T in texts],
        }
    else:
        inputs = [np.append(bos_id, text_T[:-1]) for text_T in texts]
        tasks = {"the next token": texts}
    labels = {task: frequent_labels(np.concatenate(ids).astype(np.int64)) for task, ids in tasks.items()}
    part_N = np.concatenate([part_labels(len(text_T)) for text_T in texts])
    labels |= {f"the place in the sentence (of {PARTS} parts)": part_N}
    ids_N = np.concatenate(inputs)
    return explain_vectors(streams[0], ids_N, number_N, number_N, labels, where, fresh=streams[1:])


def learning(
    checkpoints: Iterable[tuple[int, LanguageModel]],
    tokenizer: AnyTokenizer,
    pairs: Sequence[Pair],
    counts_V: np.ndarray,
) -> Learning:
    """Return the loss on held-out targets at each checkpoint."""
    pairs = even_pairs(pairs, PAIRS)
    losses = (
        (step, pad_rows([score_pair(lm, pair).nats_BT[0] for pair in pairs], np.nan))
        for step, lm in checkpoints
    )
    windows_BW = pad_rows([np.append(tokenizer.bos_id, pair.target_T) for pair in pairs], tokenizer.eos_id)
    return measure_learning(losses, tokenizer, windows_BW, counts_V)
