"""Source texts in, target texts with scores out: the tokenizer around `zerotollm.decoding.beam`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from zerotollm.data.sources.pairs import as_sentence, translation_prompt
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.beam import beam_search, hypotheses
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.model.build import Net, Params
from zerotollm.model.config import round_up
from zerotollm.model.encoder_decoder import EncoderDecoder

LENGTHS = 32
"""Sources are padded to a multiple of this, so that few lengths are ever compiled."""
SLOTS = 32_768
"""Tokens of all hypotheses of a batch that the KV cache has room for, at most."""
ROWS = 64
"""Sources in a batch, at most."""


class Translation(NamedTuple):
    """A target text."""

    text: str
    score: float
    """log-probability over the length penalty, see `zerotollm.decoding.beam`; of a decoder alone not a number"""


def translate_texts(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    sampling: SamplingConfig,
    done: Callable[[int], None] = lambda number: None,
    cut: Callable[[int, int], None] | None = None,
) -> list[list[Translation]]:
    """The `sampling.n_best` best translations of every text, best first, found in a beam of `sampling.beam_size`.

    A translation has at most `sampling.max_tokens` tokens more than its source. A decoder alone, which has learned to
    write the target after the source, takes the likeliest token each time, at most `sampling.max_tokens` of them and as
    many as the context holds after the source.
    `done` is told how many texts are translated. Raises UsageError for an empty text, and for one that the model's
    `max_length` does not hold; with `cut` such texts are cut, and it is told how many they are and how many of their
    tokens are not read.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise UsageError(
                f"there is nothing to translate in text {number + 1}: give one, as in --prompt TEXT"
            )
    if not isinstance(net, EncoderDecoder):
        return _continued(params, net, tokenizer, texts, sampling, done, cut)
    beam = sampling.beam_size
    if not 1 <= sampling.n_best <= beam:
        raise UsageError(f"n_best is {sampling.n_best}, and must be from 1 to beam_size {beam}")
    eos = tokenizer.eos_id
    encoded = tokenizer.encode_batch([as_sentence(text) for text in texts])
    room = net.config.max_length - 1
    _refuse_or_tell([len(ids) for ids in encoded], room, cut)
    sources = [np.append(ids[:room], eos).astype(np.int32) for ids in encoded]
    results: list[list[Translation]] = [[] for _ in texts]
    finished = 0
    for group, rows, width in _groups([len(source) for source in sources], beam, sampling.max_tokens):
        slots = width + sampling.max_tokens
        limits = [len(sources[i]) + sampling.max_tokens for i in group]
        if net.config.position == "learned":  # there is no vector for a later place
            slots = min(slots, net.config.max_length)
        sources_BS = np.full((rows, width), tokenizer.pad_id, np.int32)
        sources_BS[:, 0] = eos
        for row, i in enumerate(group):
            sources_BS[row, : len(sources[i])] = sources[i]
        limit_B = np.array([min(limit, slots) for limit in limits] + [1] * (rows - len(group)), np.int32)
        found = beam_search(
            params,
            sources_BS,
            sources_BS != tokenizer.pad_id,
            limit_B,
            np.float32(sampling.length_penalty),
            net=net,
            beam=beam,
            slots=slots,
            num_tokens=tokenizer.vocab_size,
            special=(tokenizer.pad_id, tokenizer.bos_id, eos),
            patience=sampling.patience,
        )
        for i, rows_of in zip(group, hypotheses(*found, eos=eos), strict=False):
            best = rows_of[: sampling.n_best]
            results[i] = [Translation(tokenizer.decode(h.ids).strip(), h.score) for h in best]
        finished += len(group)
        done(finished)
    return results


def _continued(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    sampling: SamplingConfig,
    done: Callable[[int], None],
    cut: Callable[[int, int], None] | None,
) -> list[list[Translation]]:
    """What a decoder writes after each source, greedily; the score is not reckoned."""
    encoded = tokenizer.encode_batch([translation_prompt(text) for text in texts])
    # Beside bos, the line end, which says that the target begins, and the target, if need be in half of the context.
    target = min(sampling.max_tokens, net.config.max_length // 2)
    room = max(1, net.config.max_length - target - 2)
    _refuse_or_tell([len(ids) - 1 for ids in encoded], room, cut, target)
    prompts = [
        np.concatenate([[tokenizer.bos_id], ids[:-1][:room], ids[-1:]]).astype(np.int32) for ids in encoded
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: list[list[Translation]] = [[] for _ in texts]
    for start in range(0, len(order), ROWS):
        group = order[start : start + ROWS]
        most = net.config.max_length + 1 - len(prompts[group[0]])
        greedy = replace(sampling, temperature=0.0, max_tokens=min(sampling.max_tokens, most))
        rows = [*group, *[group[-1]] * (ROWS - len(group) if len(order) > ROWS else 0)]
        drawn = sample.generate(
            params,
            net,
            [prompts[i] for i in rows],
            greedy,
            stop_id=tokenizer.stop_id,
            num_tokens=tokenizer.vocab_size,
        )
        for i, ids in zip(group, drawn, strict=False):
            ids = ids[: net.config.max_length + 1 - len(prompts[i])]  # while the source is read
            results[i] = [Translation(tokenizer.decode(ids).strip(), float("nan"))]
        done(start + len(group))
    return results


def _refuse_or_tell(
    lengths: list[int], room: int, cut: Callable[[int, int], None] | None, more: int = 0
) -> None:
    """What becomes of texts with more tokens than the `room` that a context leaves, `more` of which are written."""
    over = [length - room for length in lengths if length > room]
    if over and not cut:
        beside = f" beside a translation of {more:,}" if more else ""
        which = (
            f" number {next(n for n, x in enumerate(lengths, 1) if x > room):,}" if len(lengths) > 1 else ""
        )
        raise UsageError(
            f"the text to translate{which} is {room + over[0]:,} tokens long and the context of this model holds "
            f"{room:,}{beside}: shorten it"
        )
    if over:
        cut(len(over), sum(over))


def _groups(lengths: list[int], beam: int, extra: int) -> list[tuple[list[int], int, int]]:
    """(numbers of texts of like length, rows of their batch, its width).

    Rows are a power of two, and the same for all batches of a width: few programs are compiled. Rows beyond the texts
    are done at once.
    """
    by_width: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        by_width.setdefault(round_up(lengths[i], LENGTHS), []).append(i)
    groups = []
    for width, members in by_width.items():
        most = max(1, min(ROWS, SLOTS // (beam * (width + extra))))
        rows = 1 << (min(most, len(members)).bit_length() - 1)
        if rows < len(members) and 2 * rows <= most:
            rows *= 2
        groups += [(members[start : start + rows], rows, width) for start in range(0, len(members), rows)]
    return groups


def translate_text(params: Params, net: Net, tokenizer: AnyTokenizer, sampling: SamplingConfig) -> str:
    """The best translation of `sampling.prompt`; with `n_best` above 1 each on a line, after its score."""
    (best,) = translate_texts(params, net, tokenizer, [sampling.prompt], sampling)
    if sampling.n_best == 1:
        return best[0].text
    return "\n".join(f"{translation.score:.4f}\t{translation.text}" for translation in best)
