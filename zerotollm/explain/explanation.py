"""All answers together: about one text (`explain_text`) and about a whole run (`explain_run`)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.data.tokens.suffix_array import SuffixArray, suffix_array
from zerotollm.explain.ablation import COSTLY, Ablation, ablate_heads, ablation_cost
from zerotollm.explain.activations import (
    LONGEST,
    LanguageModel,
    concatenate_scores,
    even_windows,
    record_rows,
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
from zerotollm.explain.grammar import Grammar
from zerotollm.explain.layers import Layers, explain_layers
from zerotollm.explain.learning import Learning, explain_learning, text_token_ids
from zerotollm.explain.meaning import Meaning, count_usage, explain_meaning
from zerotollm.explain.memorization import Memorization, explain_memorization
from zerotollm.explain.merges import Merges, count_words, replay_merges
from zerotollm.explain.pair_activations import Pair, even_pairs
from zerotollm.explain.pair_answers import held_out_answers, text_answers
from zerotollm.explain.pair_answers import learning as pair_learning
from zerotollm.explain.prediction import Prediction, Sampler, predict
from zerotollm.explain.sources import NO_DOCUMENTS, Documents, Sources, explain_sources
from zerotollm.explain.tokenization import (
    Tokenization,
    TokenizerComparison,
    compare_tokenizers,
    explain_tokens,
)
from zerotollm.explain.words import sentence_ends, token_counts
from zerotollm.model.config import TransformerConfig
from zerotollm.training.lora import Params

COUNTED_TOKENS = 4_000_000
"""Tokens at the start of the training text that are counted."""
INDEXED_TOKENS = 2**26
"""Tokens at the start of the training text in which spans are looked up; their suffix array takes a minute."""
WINDOWS = 32
"""Windows of held-out text that go through the model. Attention is recorded in every fourth, and vectors of layers and
the loss without each head in every second ..."""
ABLATED_TOKENS = 128
"""... up to this length: many short windows give narrower intervals than few long ones."""
TRANSLATED = 16
"""Sources that an encoder-decoder translates."""
TOKENIZER_CHARACTERS = 300_000
"""Characters that the tokenizers to compare are trained on."""
HELD_OUT_TOKENS = 100_000
"""Tokens of held-out text that they split."""
JSON_ITEMS = 64
"""Arrays and lists with more items are left out of JSON."""
NO_TEXT = "it needs the training text and held-out text, which were not found"
COSTLY_ON_CPU = (
    "a model of this size has to be run too many times for a CPU: take a machine with an accelerator"
)

LeftOut = tuple[tuple[str, str], ...]
"""(name of an answer, reason why there is none)"""
FreshParams = Callable[[], Iterable[Params]]
"""Yields the parameters of randomly initialized models."""
Translate = Callable[[Sequence[str]], list[str]]
"""The model's translation of each text."""
Continue = Callable[[np.ndarray], np.ndarray]
"""The tokens that the model writes after those of a text."""


class ReferenceText(NamedTuple):
    """Tokens of the text that a model was trained on, and of held-out text."""

    train_N: np.ndarray
    held_out_N: np.ndarray
    labels: Mapping[str, np.ndarray] = MappingProxyType({})
    """name -> (N,) whole numbers: known labels of the held-out tokens, -1 for none"""
    pairs: tuple[Pair, ...] = ()
    """for an encoder-decoder: held-out sources with their targets"""
    document_bos: int | None = None
    """the id that starts a document, if attention stays inside documents (`data.document_mask`)"""
    suffixes: SuffixArray | None = None
    """of `train_N`; None: made when it is needed"""
    documents: Documents = NO_DOCUMENTS
    """of `train_N`"""

    def searchable(self) -> SuffixArray:
        """Return the suffix array of the first `INDEXED_TOKENS` tokens trained on."""
        return self.suffixes or suffix_array(self.train_N[:INDEXED_TOKENS])

    def sources_of(self, text_T: np.ndarray, tokenizer: AnyTokenizer, subject: str) -> Sources:
        """Return where the spans of a text occur in the training text."""
        held_out_N = self.held_out_N
        return explain_sources(text_T, self.searchable(), held_out_N, tokenizer, self.documents, subject)


class _Answers:
    """What `Explanation` and `RunExplanation` share: their fields are answers."""

    left_out: LeftOut

    def sentences(self) -> dict[str, str]:
        """Return each answer's sentence, or the reason why there is none."""
        answers = {name: answer for name, answer in vars(self).items() if hasattr(answer, "sentence")}
        sentences = {name: answer.sentence() for name, answer in answers.items()}
        return sentences | {name: f"left out: {reason}" for name, reason in self.left_out}

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {sentence}" for name, sentence in self.sentences().items())


@dataclass(frozen=True, repr=False)
class Explanation(_Answers):
    """The answers about one text. An answer that does not apply is None, and `left_out` gives the reason."""

    text: str
    tokens: Tokenization
    embedding: Embeddings
    layers: Layers | None = None
    """for an encoder-decoder this, `attention`, `heads` and `ablation` are of the decoder and its self-attention"""
    prediction: Prediction | None = None
    calibration: Calibration | None = None
    positions: LossByPosition | None = None
    attention: AttentionMaps | None = None
    alignment: Alignment | None = None
    heads: Heads | None = None
    ablation: Ablation | None = None
    encoder_layers: Layers | None = None
    encoder_attention: AttentionMaps | None = None
    encoder_heads: Heads | None = None
    encoder_ablation: Ablation | None = None
    cross_heads: Heads | None = None
    cross_ablation: Ablation | None = None
    memorization: Memorization | None = None
    sources: Sources | None = None
    """of what the model writes after the text, or of its translation"""
    left_out: LeftOut = ()


@dataclass(frozen=True, repr=False)
class RunExplanation(_Answers):
    """The answers that need the checkpoints and the training text of a run."""

    meaning: Meaning | None = None
    generation: Generation | None = None
    grammar: Grammar | None = None
    learning: Learning | None = None
    layers: Layers | None = None
    """as in `Explanation`, on more windows, with a probe for labels of the documents"""
    tokenizers: TokenizerComparison | None = None
    left_out: LeftOut = ()

    def without(self, name: str, reason: str) -> "RunExplanation":
        """Return the answers with the reason why one of them is left out."""
        return dataclasses.replace(self, left_out=(*self.left_out, (name, reason)))


def explain_text(
    params: Params,
    model: TransformerConfig,
    tokenizer: AnyTokenizer,
    text: str,
    *,
    reference: ReferenceText | None = None,
    merges: Merges | None = None,
    sampler: Sampler | None = None,
    translate: Translate | None = None,
    continue_text: Continue | None = None,
    fresh: FreshParams = tuple,
) -> Explanation:
    """Return every answer about one text.

    Without `reference` there are no answers about frequencies or held-out text. `merges` are those of the training
    text, counted here if None. `translate` is of an encoder-decoder, whose translation is aligned with the text.
    `continue_text` is of a decoder; the sources are of what it writes.
    """
    counts_V = training = None
    if reference is not None:
        train_N = reference.train_N[:COUNTED_TOKENS]
        counts_V, training = token_counts(train_N, tokenizer.vocab_size), tokenizer.decode(train_N)
        if merges is None and isinstance(tokenizer, Tokenizer) and tokenizer.kind == "bpe":
            merges = replay_merges(tokenizer, count_words(training))
    tokens = explain_tokens(tokenizer, text, counts_V=counts_V, merges=merges, training=training)
    ids_T, cut = text_tokens(tokenizer, text, model.max_length)
    embedding = explain_embeddings(np.asarray(params["embedding"]), tokenizer, counts_V, ids_T.tolist())
    lm = LanguageModel(params, model, tokenizer, reference.document_bos if reference else None)
    first = Explanation(text, tokens, embedding)
    need_text = ("layers", "calibration", "positions", "heads", "ablation", "memorization", "sources")
    without_text = tuple((name, NO_TEXT) for name in need_text)
    if model.encoder_layers:
        target = translate([text])[0] if translate else ""
        first = dataclasses.replace(first, **text_answers(lm, text, target))
        if reference is None or not reference.pairs:
            return dataclasses.replace(first, left_out=without_text)
        if target:
            sources = reference.sources_of(tokenizer.encode(target), tokenizer, "the translation")
            first = dataclasses.replace(first, sources=sources)
        return dataclasses.replace(first, **held_out_answers(lm, reference.pairs, fresh()))

    activations = record_text(lm, ids_T)
    prediction = predict(lm, ids_T, activations, cut, sampler)
    attention = attention_maps(activations.weights_LHTS, prediction.pieces)
    first = dataclasses.replace(first, prediction=prediction, attention=attention)
    if reference is None or counts_V is None or len(reference.held_out_N) < 4:
        return dataclasses.replace(first, left_out=without_text)
    memorization = explain_memorization(lm, train_N, reference.held_out_N, counts_V)
    first = dataclasses.replace(first, memorization=memorization)
    if continue_text and len(written_T := continue_text(ids_T)):
        sources = reference.sources_of(written_T, tokenizer, "what it writes after the text")
        first = dataclasses.replace(first, sources=sources)
    windows_BW = held_out_windows(model, reference)
    scores, residual = [], []

    def recorded_attention() -> Iterator[np.ndarray]:
        """Yield the attention of every fourth window, and keep scores and vectors of the others on the way."""
        for b, window in enumerate(record_windows(lm, windows_BW)):
            scores.append(window.scores)
            if b % 2 == 0:
                residual.append(window.residual())
            if b % 4 == 0:
                yield window.weights()

    ids_N = text_token_ids(tokenizer, counts_V)
    heads = explain_heads(lm, windows_BW[::4, :-1], ids_N, recorded_attention())
    residual_MBTD = np.stack(residual, axis=1)
    residual.clear()  # it is as large
    all_scores = concatenate_scores(scores)
    ablated_BW = windows_BW[::2, : ABLATED_TOKENS + 1]
    too_costly = jax.default_backend() == "cpu" and ablation_cost(lm, ablated_BW) > COSTLY
    return dataclasses.replace(
        first,
        layers=explain_layers(
            residual_MBTD,
            windows_BW[::2],
            sentence_ends(tokenizer),
            fresh=fresh_streams(lm, windows_BW[::2], fresh),
        ),
        calibration=calibration(all_scores.confidence_BT, all_scores.correct_BT),
        positions=loss_by_position(all_scores.nats_BT),
        heads=heads,
        ablation=None if too_costly else ablate_heads(lm, ablated_BW),
        left_out=(("ablation", COSTLY_ON_CPU),) if too_costly else (),
    )


def held_out_windows(model: TransformerConfig, reference: ReferenceText) -> np.ndarray:
    """Return `WINDOWS` windows of held-out text, (B, T + 1), T at most `LONGEST`."""
    return even_windows(reference.held_out_N, min(model.max_length, LONGEST), WINDOWS)


def streams_of(lm: LanguageModel, windows_BW: np.ndarray) -> np.ndarray:
    """Return the residual stream of a decoder on B windows of T + 1 tokens, (M, B, T, D)."""
    T = windows_BW.shape[1] - 1
    rows = [recording.residual("") for recording in record_rows(lm, windows_BW)]  # no logits: they cost most
    return np.concatenate([x_MSD.reshape(len(x_MSD), -1, T, x_MSD.shape[-1]) for x_MSD in rows], axis=1)


def fresh_streams(lm: LanguageModel, windows_BW: np.ndarray, fresh: FreshParams) -> Iterator[np.ndarray]:
    """Yield `streams_of` of each fresh model. Only one of them is in memory, where a generator would keep the last."""
    return map(lambda params: streams_of(lm._replace(params=params), windows_BW), fresh())


def explain_run(
    checkpoints: Callable[[], Iterable[tuple[int, Params]]],
    model: TransformerConfig,
    tokenizer: AnyTokenizer,
    reference: ReferenceText,
    *,
    samples: Sequence[np.ndarray] = (),
    text: str = "",
    translate: Translate | None = None,
    fresh: FreshParams = tuple,
) -> RunExplanation:
    """Return the answers that need checkpoints, samples and the training text; takes about a minute.

    `checkpoints()` yields (step, params), the oldest first, and is called twice. `samples` are ids of texts
    that the last checkpoint wrote at temperature 1; all are cut to the shortest. The tokenizers to compare split
    `text`. `translate` is of an encoder-decoder that was trained on pairs of texts.
    """
    train_N = reference.train_N[:COUNTED_TOKENS]
    counts_V = token_counts(train_N, tokenizer.vocab_size)
    embeddings, params = [], {}
    for step, params in checkpoints():
        embeddings.append((step, np.asarray(params["embedding"])))
    first = RunExplanation(
        meaning=explain_meaning(embeddings, count_usage(train_N, tokenizer)),
        tokenizers=_compare_tokenizers(tokenizer, train_N, reference.held_out_N, text),
    )
    lm = LanguageModel(params, model, tokenizer, reference.document_bos)
    history = ((step, lm._replace(params=params)) for step, params in checkpoints())
    if model.encoder_layers:
        if not reference.pairs:
            return dataclasses.replace(first, left_out=(("generation", NO_TEXT), ("learning", NO_TEXT)))
        learning = pair_learning(history, tokenizer, reference.pairs, counts_V)
        if translate is None:
            reason = "the model writes parts of a text, not whole texts"
            return dataclasses.replace(first, learning=learning, left_out=(("generation", reason),))
        pairs = even_pairs(reference.pairs, TRANSLATED)
        translations = translate([tokenizer.decode(pair.source_S[:-1]) for pair in pairs])
        generation = explain_translations(lm, pairs, translations, reference.searchable())
        return dataclasses.replace(first, generation=generation, learning=learning)

    windows_BW = held_out_windows(model, reference)
    labels = {
        name: even_windows(label_N, windows_BW.shape[1] - 1, WINDOWS)[:, :-1]
        for name, label_N in reference.labels.items()
    }
    first = dataclasses.replace(
        first,
        learning=explain_learning(history, tokenizer, windows_BW, counts_V),
        layers=explain_layers(
            streams_of(lm, windows_BW),
            windows_BW,
            sentence_ends(tokenizer),
            labels,
            fresh=fresh_streams(lm, windows_BW, fresh),
        ),
    )
    lengths = [len(sample) for sample in samples]
    T = min(min(lengths, default=0), model.max_length - 1, len(reference.held_out_N) - 1)
    if len(samples) < 2 or T < 8:
        reason = f"it needs 2 samples of 8 tokens, but there are {len(samples)}, the shortest of {T}"
        return dataclasses.replace(first, left_out=(("generation", reason),))
    real_BT = document_beginnings(reference.held_out_N, tokenizer.bos_id, T, len(samples))
    comparable = len(real_BT) > 1
    if not comparable:  # the held-out text is one document, which may start in the middle of a file
        real_BT = even_windows(reference.held_out_N, T, len(samples))[:, :T]
    samples_BT = np.stack([np.asarray(sample)[:T] for sample in samples])
    generation = explain_generation(lm, samples_BT, real_BT, reference.searchable(), comparable)
    return dataclasses.replace(first, generation=generation)


def _compare_tokenizers(
    tokenizer: AnyTokenizer, train_N: np.ndarray, held_out_N: np.ndarray, text: str
) -> TokenizerComparison:
    """Compare BPE, unigram and char with the model's vocabulary size, if the training text allows it."""
    training = tokenizer.decode(train_N)[:TOKENIZER_CHARACTERS]
    size = tokenizer.vocab_size if tokenizer.kind != "char" else 4096
    configs = {kind: TokenizerConfig(kind=kind, vocab_size=size) for kind in ("bpe", "unigram", "char")}
    return compare_tokenizers(text, tokenizer.decode(held_out_N[:HELD_OUT_TOKENS]), training, configs)


def to_json(value: Any) -> Any:
    """Return an answer as JSON: all its fields, without arrays and lists of more than `JSON_ITEMS` items."""
    if dataclasses.is_dataclass(value) or hasattr(value, "_asdict"):
        as_dict = getattr(value, "_asdict", lambda: vars(value))
        fields = {name: to_json(field) for name, field in as_dict().items()}
        sentence = getattr(value, "sentence", None)
        fields = {name: field for name, field in fields.items() if field is not None}
        return fields | ({"sentence": sentence()} if sentence else {})
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return None if array.size > JSON_ITEMS else to_json(array.tolist())
    if isinstance(value, list | tuple):
        return None if len(value) > JSON_ITEMS else [to_json(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
