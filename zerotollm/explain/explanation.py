"""All answers together: about one text (`explain_text`) and about a whole run (`explain_run`)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.ablation import Ablation, ablate_heads
from zerotollm.explain.activations import (
    LONGEST,
    concatenate_scores,
    even_windows,
    record_text,
    record_windows,
    text_tokens,
)
from zerotollm.explain.alignment import Alignment
from zerotollm.explain.attention import AttentionMaps, Heads, attention_maps, explain_heads
from zerotollm.explain.calibration import Calibration, LossByPosition, calibration, loss_by_position
from zerotollm.explain.embeddings import Embeddings, explain_embeddings
from zerotollm.explain.generation import (
    Generation,
    document_beginnings,
    explain_generation,
    explain_translations,
)
from zerotollm.explain.layers import Layers, explain_layers
from zerotollm.explain.learning import Learning, explain_learning, usual_ids
from zerotollm.explain.meaning import Meaning, count_usage, explain_meaning
from zerotollm.explain.merges import Merges, count_words, replay
from zerotollm.explain.pair_activations import Pair, even_pairs
from zerotollm.explain.pair_answers import held_out_answers, text_answers
from zerotollm.explain.pair_answers import learning as pair_learning
from zerotollm.explain.prediction import Prediction, predict
from zerotollm.explain.tokenization import (
    Tokenization,
    TokenizerComparison,
    compare_tokenizers,
    explain_tokens,
)
from zerotollm.explain.words import sentence_ends, token_counts
from zerotollm.model.config import TransformerConfig

READ = 4_000_000
"""Tokens of the training text that are counted, from its start."""
SCORED = 32
"""Windows of held-out text that go through the model once, or once a checkpoint. In every fourth of them it is seen
where each head looks; every second gives vectors of layers, and goes through the model without each head ..."""
ABLATED = 128
"""... as far as this many tokens: for intervals many short windows are worth more than few long ones."""
TRANSLATED = 16
"""Sources that an encoder-decoder translates."""
COMPARED = 300_000
"""Characters that the tokenizers to compare learn from."""
NO_TEXT = "it takes the text that the model was trained with and held-out text, which are not here"


class ReferenceText(NamedTuple):
    """Tokens of the text that a model was trained with, and of text that it has not seen."""

    train_N: np.ndarray
    held_out_N: np.ndarray
    labels: Mapping[str, np.ndarray] = MappingProxyType({})
    """name -> (N,) whole numbers, -1 for none: what is known of each held-out token besides"""
    pairs: tuple[Pair, ...] = ()
    """of an encoder-decoder: held-out sources with their targets"""
    document_bos: int | None = None
    """the id with which a document begins, where attention stays inside a document (`data.document_mask`)"""


@dataclass(frozen=True)
class Explanation:
    """What one text shows of a model. Where a question does not apply its answer is None, and `left_out` says why."""

    text: str
    tokens: Tokenization
    embedding: Embeddings
    layers: Layers | None = None
    prediction: Prediction | None = None
    calibration: Calibration | None = None
    positions: LossByPosition | None = None
    attention: AttentionMaps | None = None
    alignment: Alignment | None = None
    heads: Heads | None = None
    ablation: Ablation | None = None
    encoder_layers: Layers | None = None
    """This and the following of an encoder-decoder, whose `layers`, `attention`, `heads` and `ablation` are of the
    decoder and its attention to what is written already."""
    encoder_attention: AttentionMaps | None = None
    encoder_heads: Heads | None = None
    encoder_ablation: Ablation | None = None
    cross_heads: Heads | None = None
    cross_ablation: Ablation | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    """(answer, reason)"""

    def sentences(self) -> dict[str, str]:
        """Answer -> its sentence, or why there is none."""
        return _sentences(self)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {sentence}" for name, sentence in self.sentences().items())


@dataclass(frozen=True)
class RunExplanation:
    """What the checkpoints and the texts of a whole run show."""

    meaning: Meaning | None = None
    generation: Generation | None = None
    learning: Learning | None = None
    layers: Layers | None = None
    """as in `Explanation`, on more windows, with a probe for what is known of the documents"""
    tokenizers: TokenizerComparison | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def sentences(self) -> dict[str, str]:
        """Answer -> its sentence, or why there is none."""
        return _sentences(self)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {sentence}" for name, sentence in self.sentences().items())


def _sentences(answers: Explanation | RunExplanation) -> dict[str, str]:
    found = {}
    for part in dataclasses.fields(answers):
        answer = getattr(answers, part.name)
        if hasattr(answer, "sentence"):
            found[part.name] = answer.sentence()
    return found | {name: f"left out: {reason}" for name, reason in answers.left_out}


def explain_text(
    params: Any,
    model: TransformerConfig,
    tokenizer: Tokenizer,
    text: str,
    *,
    material: ReferenceText | None = None,
    merges: Merges | None = None,
    temperature: float = 1.0,
    sampled: Callable[[np.ndarray], np.ndarray] | None = None,
    draw: Callable[[np.ndarray, int], int] | None = None,
    translate: Callable[[str], str] | None = None,
    fresh: Callable[[], Iterable[Any]] = tuple,
) -> Explanation:
    """Every answer that one text can have.

    `merges` are those of the training text, where they are counted already. `sampled` and `draw` as in
    `prediction.predict`; `translate` is what an encoder-decoder makes of the text, so that the two can be aligned.
    `fresh()` gives parameters of models that learned nothing, one after the other.

    Without `material` nothing is said of frequencies or of held-out text.
    """
    train_N = None if material is None else material.train_N[:READ]
    counts_V = None if train_N is None else token_counts(train_N, tokenizer.vocab_size)
    training = None if train_N is None else tokenizer.decode(train_N)
    if training is not None and merges is None and tokenizer.kind == "bpe":
        merges = replay(tokenizer, count_words(training))
    tokens = explain_tokens(tokenizer, text, counts_V=counts_V, merges=merges, training=training)
    ids_T, cut = text_tokens(tokenizer, text, model.max_length)
    embedding = explain_embeddings(np.asarray(params["embedding"]), tokenizer, counts_V, ids_T.tolist())
    if model.architecture != "decoder":
        written = translate(text) if translate else ""
        first = Explanation(text, tokens, embedding, **text_answers(params, model, tokenizer, text, written))
        if material is None or not material.pairs:
            return dataclasses.replace(first, left_out=_without(NO_TEXT))
        found = held_out_answers(params, model, tokenizer, material.pairs, fresh())
        return dataclasses.replace(first, **found)

    seen = record_text(params, model, ids_T)
    prediction = predict(
        params, model, tokenizer, ids_T, seen, cut=cut, temperature=temperature, sampled=sampled, draw=draw
    )
    attention = attention_maps(seen.weights_LHTS, prediction.pieces)
    first = Explanation(text, tokens, embedding, prediction=prediction, attention=attention)
    if material is None or len(material.held_out_N) < 4:
        return dataclasses.replace(first, left_out=_without(NO_TEXT))
    windows_BW = held_out_windows(model, material, SCORED)
    document_bos = material.document_bos
    each, residual = [], []

    def seen_by_heads() -> Iterator[np.ndarray]:
        seen = record_windows(params, windows_BW, model=model, document_bos=document_bos)
        for b, window in enumerate(seen):
            each.append(window.scores)
            if b % 2 == 0:
                residual.append(window.residual())
            if b % 4 == 0:
                yield window.weights()

    usual_N = usual_ids(tokenizer, counts_V)
    heads = explain_heads(
        params, model, tokenizer, windows_BW[::4, :-1], usual_N, seen_by_heads(), document_bos
    )
    scores = concatenate_scores(each)
    return dataclasses.replace(
        first,
        layers=explain_layers(
            np.stack(residual, axis=1),
            windows_BW[::2],
            sentence_ends(tokenizer),
            fresh=(streams_of(other, model, windows_BW[::2], document_bos) for other in fresh()),
        ),
        calibration=calibration(scores.confidence_BT, scores.correct_BT),
        positions=loss_by_position(scores.nats_BT),
        heads=heads,
        ablation=ablate_heads(params, model, windows_BW[::2, : ABLATED + 1], document_bos),
    )


def _without(why: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, why) for name in ("layers", "calibration", "positions", "heads", "ablation"))


def held_out_windows(model: TransformerConfig, material: ReferenceText, count: int) -> np.ndarray:
    """Windows of held-out text, (B, T + 1), at most `LONGEST` tokens long."""
    return even_windows(material.held_out_N, min(model.max_length, LONGEST), count)


def streams_of(
    params: Any, model: TransformerConfig, windows_BW: np.ndarray, document_bos: int | None = None
) -> np.ndarray:
    """The residual stream of a decoder on B windows of T + 1 tokens, (M, B, T, D)."""
    seen = record_windows(params, windows_BW, model=model, document_bos=document_bos)
    return np.stack([window.residual() for window in seen], axis=1)


def explain_run(
    checkpoints: Callable[[], Iterable[tuple[int, Any]]],
    model: TransformerConfig,
    tokenizer: Tokenizer,
    material: ReferenceText,
    *,
    samples: Sequence[np.ndarray] = (),
    text: str = "",
    write: Callable[[Sequence[str]], list[str]] | None = None,
    fresh: Callable[[], Iterable[Any]] = tuple,
) -> RunExplanation:
    """The answers that take checkpoints, samples and the whole training text. Takes a minute or so.

    `checkpoints()` gives (step, params), the oldest first, as often as it is called. `samples` are ids of texts that
    the last of them wrote, drawn at temperature 1; all are cut to the length of the shortest. `text` is cut by the
    tokenizers to compare. `write` gives what an encoder-decoder makes of sources, where these are whole texts. `fresh`
    as in `explain_text`.
    """
    train_N = material.train_N[:READ]
    counts_V = token_counts(train_N, tokenizer.vocab_size)
    tokenizers = _other_tokenizers(tokenizer, train_N, material.held_out_N, text)
    meaning = explain_meaning(
        [(step, np.asarray(params["embedding"])) for step, params in checkpoints()],
        count_usage(train_N, tokenizer),
    )
    if model.architecture != "decoder":
        if not material.pairs:
            return RunExplanation(
                meaning, tokenizers=tokenizers, left_out=(("generation", NO_TEXT), ("learning", NO_TEXT))
            )
        learned = pair_learning(checkpoints(), model, tokenizer, material.pairs, counts_V)
        if write is None:
            why = "what it writes are parts of a text, and these are no texts of their own"
            return RunExplanation(
                meaning, None, learned, tokenizers=tokenizers, left_out=(("generation", why),)
            )
        *_, (_, params) = checkpoints()
        pairs = even_pairs(material.pairs, TRANSLATED)
        written = write([tokenizer.decode(pair.source_S[:-1]) for pair in pairs])
        generation = explain_translations(params, model, tokenizer, pairs, written, material.train_N)
        return RunExplanation(meaning, generation, learned, tokenizers=tokenizers)
    windows_BW = held_out_windows(model, material, SCORED)
    document_bos = material.document_bos
    learning = explain_learning(checkpoints(), model, tokenizer, windows_BW, counts_V, document_bos)
    *_, (_, params) = checkpoints()
    labels = {
        name: even_windows(label_N, windows_BW.shape[1] - 1, SCORED)[:, :-1]
        for name, label_N in material.labels.items()
    }
    layers = explain_layers(
        streams_of(params, model, windows_BW, document_bos),
        windows_BW,
        sentence_ends(tokenizer),
        labels,
        fresh=(streams_of(other, model, windows_BW, document_bos) for other in fresh()),
    )
    T = min((len(sample) for sample in samples), default=0)
    T = min(T, model.max_length - 1, len(material.held_out_N) - 1)
    real_BT = document_beginnings(material.held_out_N, tokenizer.bos_id, T, len(samples))
    alike = len(real_BT) > 1
    if not alike:  # the held-out text is one document, which may begin in the middle of a file
        real_BT = even_windows(material.held_out_N, T, len(samples))[:, :T]
    if len(samples) < 2 or T < 8:
        why = f"it takes 2 samples of 8 tokens, and there are {len(samples)}, the shortest of {T}"
        return RunExplanation(meaning, None, learning, layers, tokenizers, (("generation", why),))
    generation = explain_generation(
        params,
        model,
        tokenizer,
        np.stack([np.asarray(sample)[:T] for sample in samples]),
        real_BT,
        material.train_N,
        document_bos,
        alike,
    )
    return RunExplanation(meaning, generation, learning, layers, tokenizers)


def _other_tokenizers(
    tokenizer: Tokenizer, train_N: np.ndarray, held_out_N: np.ndarray, text: str
) -> TokenizerComparison:
    """BPE, unigram and char, of the model's vocabulary size where the text allows it."""
    training = tokenizer.decode(train_N)[:COMPARED]
    size = tokenizer.vocab_size if tokenizer.kind != "char" else 4096
    settings = {kind: TokenizerConfig(kind=kind, vocab_size=size) for kind in ("bpe", "unigram", "char")}
    return compare_tokenizers(text, tokenizer.decode(held_out_N[:100_000]), training, settings)


def numbers(answer: Any, most: int = 64) -> Any:
    """An answer as JSON: all its fields, but for arrays and texts that are longer than `most`."""
    if dataclasses.is_dataclass(answer):
        parts = {part.name: numbers(getattr(answer, part.name), most) for part in dataclasses.fields(answer)}
        parts = {name: value for name, value in parts.items() if value is not None}
        return parts | ({"sentence": answer.sentence()} if hasattr(answer, "sentence") else {})
    if hasattr(answer, "_asdict"):
        parts = {name: numbers(value, most) for name, value in answer._asdict().items()}
        return {name: value for name, value in parts.items() if value is not None}
    if isinstance(answer, np.ndarray | np.generic | jax.Array):
        array = np.asarray(answer)
        return None if array.size > most else numbers(array.tolist(), most)
    if isinstance(answer, list | tuple):
        return None if len(answer) > most else [numbers(value, most) for value in answer]
    if isinstance(answer, float):
        return answer if np.isfinite(answer) else None
    return answer
