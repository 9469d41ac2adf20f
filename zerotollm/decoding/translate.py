"""Translate texts: the tokenizer around `zerotollm.decoding.beam`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from zerotollm.data.sources.pairs import as_sentence, translation_prompt
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.beam import Hypothesis, beam_search, hypotheses
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.model.build import Net, Params
from zerotollm.model.config import round_up
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.sharding.cores import map_on_cores

LENGTHS = 32
"""Sources are padded to a multiple of this, so that few lengths are compiled."""
SLOTS = 32_768
"""Most tokens, of all hypotheses of a batch, in the KV cache."""
ROWS = 64
"""Most sources in a batch."""


class Translation(NamedTuple):
    """A target text and its score."""

    text: str
    score: float
    """log-probability over the length penalty, see `zerotollm.decoding.beam`; NaN for a decoder-only model"""


def translate_texts(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    sampling: SamplingConfig,
    done: Callable[[int], None] = lambda number: None,
    cut: Callable[[int, int], None] | None = None,
) -> list[list[Translation]]:
    """Return the `sampling.n_best` best translations of every text, best first, from a beam of `sampling.beam_size`.

    A translation has at most `sampling.max_tokens` tokens more than its source; a character that this limit cuts is
    dropped. A decoder-only model, trained to
    continue the source with the target, is decoded greedily: at most `sampling.max_tokens` tokens, and as many as the
    context holds after the source. `done` is called with the number of texts translated.

    Raises UsageError for an empty text, and for one longer than the model's `max_length`. With `cut`, long texts are
    truncated instead, and it is called with their number and the number of truncated tokens.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise UsageError(
                f"text {number + 1} is empty, there is nothing to translate: give one, as in --prompt TEXT"
            )
    if not isinstance(net, EncoderDecoder):
        return _translate_greedily(params, net, tokenizer, texts, sampling, done, cut)
    beam = sampling.beam_size
    if not 1 <= sampling.n_best <= beam:
        raise UsageError(f"n_best is {sampling.n_best}: expected 1 to beam_size {beam}")
    eos = tokenizer.eos_id
    encoded = tokenizer.encode_batch([as_sentence(text) for text in texts])
    room = net.config.max_length - 1
    _check_lengths([len(ids) for ids in encoded], room, cut)
    sources = [np.append(ids[:room], eos).astype(np.int32) for ids in encoded]

    def search(group: list[int], rows: int, width: int) -> list[list[Hypothesis]]:
        slots = width + sampling.max_tokens
        limits = [len(sources[i]) + sampling.max_tokens for i in group]
        if net.config.position == "learned":  # there is no vector for later positions
            slots = min(slots, net.config.max_length)
        sources_BS = np.full((rows, width), tokenizer.pad_id, np.int32)
        sources_BS[:, 0] = eos
        for row, i in enumerate(group):
            sources_BS[row, : len(sources[i])] = sources[i]
        limit_B = np.array([min(limit, slots) for limit in limits] + [1] * (rows - len(group)), np.int32)
        output = beam_search(
            params,
            sources_BS,
            sources_BS != tokenizer.pad_id,
            limit_B,
            sampling.length_penalty,
            net=net,
            beam=beam,
            slots=slots,
            next_state_SV=tokenizer.utf8.next_state_SV,
            special=(tokenizer.pad_id, tokenizer.bos_id, eos),
            patience=sampling.patience,
        )
        return hypotheses(*output, eos=eos)

    results: list[list[Translation]] = [[] for _ in texts]
    groups = _groups([len(source) for source in sources], beam, sampling.max_tokens)
    finished = 0
    for (group, _, _), beams in zip(groups, map_on_cores(lambda group: search(*group), groups), strict=True):
        for i, beam_of_source in zip(group, beams, strict=False):
            best = beam_of_source[: sampling.n_best]
            results[i] = [Translation(tokenizer.decode(h.ids, final=False).strip(), h.score) for h in best]
        finished += len(group)
        done(finished)
    return results


def _translate_greedily(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    sampling: SamplingConfig,
    done: Callable[[int], None],
    cut: Callable[[int, int], None] | None,
) -> list[list[Translation]]:
    """Continue each source with a decoder-only model; scores are not computed."""
    encoded = tokenizer.encode_batch([translation_prompt(text) for text in texts])
    # Reserve bos, the newline that starts the target, and the target, which takes at most half of the context.
    target = min(sampling.max_tokens, net.config.max_length // 2)
    room = max(1, net.config.max_length - target - 2)
    _check_lengths([len(ids) - 1 for ids in encoded], room, cut, target)
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
            params, net, [prompts[i] for i in rows], greedy, stop_ids=tokenizer.stop_ids, utf8=tokenizer.utf8
        )
        for i, ids in zip(group, drawn, strict=False):
            ids = ids[: net.config.max_length + 1 - len(prompts[i])]  # the source stays in the context
            results[i] = [Translation(tokenizer.decode(ids, final=False).strip(), float("nan"))]
        done(start + len(group))
    return results


def _check_lengths(
    lengths: list[int], room: int, cut: Callable[[int, int], None] | None, target: int = 0
) -> None:
    """Raise UsageError if a text has more than `room` tokens, besides a `target`; with `cut`, report it instead."""
    over = [length - room for length in lengths if length > room]
    if over and not cut:
        beside = f" besides a translation of {target:,}" if target else ""
        which = (
            f" number {next(n for n, x in enumerate(lengths, 1) if x > room):,}" if len(lengths) > 1 else ""
        )
        raise UsageError(
            f"the text to translate{which} is {room + over[0]:,} tokens long and the context of this model holds "
            f"{room:,}{beside}: shorten it"
        )
    if over and cut:
        cut(len(over), sum(over))


def _groups(lengths: list[int], beam: int, extra: int) -> list[tuple[list[int], int, int]]:
    """Return batches of texts of similar length: (indices of the texts, rows, width).

    Rows are a power of two, and the same for all batches of a width, so that few programs are compiled. Rows without a
    text finish at once.
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
    """Return the best translation of `sampling.prompt`; if `n_best` exceeds 1, lines of score and translation."""
    (best,) = translate_texts(params, net, tokenizer, [sampling.prompt], sampling)
    if sampling.n_best == 1:
        return best[0].text
    return "\n".join(f"{translation.score:.4f}\t{translation.text}" for translation in best)
