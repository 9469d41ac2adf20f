"""Generate text from text: the tokenizer around `zerotollm.decoding.sample`."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.translate import translate_text
from zerotollm.errors import UsageError
from zerotollm.model.build import Net, Params
from zerotollm.model.encoder_decoder import EncoderDecoder


def encode_prompt(tokenizer: AnyTokenizer, prompt: str, max_length: int) -> np.ndarray:
    """Return bos and the ids of the prompt. Raises UsageError if the context is too short."""
    return encode_prompts(tokenizer, [prompt], max_length)[0]


def encode_prompts(tokenizer: AnyTokenizer, prompts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Return `encode_prompt` of each prompt."""
    bos = [tokenizer.bos_id]
    ids = [np.concatenate([bos, ids_N]).astype(np.int32) for ids_N in tokenizer.encode_batch(prompts)]
    longest = max(map(len, ids), default=0)
    if longest > max_length:
        raise UsageError(
            f"the prompt is {longest - 1:,} tokens long and the context of this model holds "
            f"{max_length - 1:,}: shorten it"
        )
    return ids


def generate_texts(
    params: Params, net: Net, tokenizer: AnyTokenizer, prompts: Sequence[str], sampling: SamplingConfig
) -> list[str]:
    """Return each prompt followed by its continuation, generated as one batch.

    A character that the length limit cuts is dropped.
    """
    ids = [encode_prompt(tokenizer, prompt, net.config.max_length) for prompt in prompts]
    drawn = sample.generate(params, net, ids, sampling, stop_ids=tokenizer.stop_ids, utf8=tokenizer.utf8)
    return [prompt + tokenizer.decode(new, final=False) for prompt, new in zip(prompts, drawn, strict=True)]


def sample_text(
    params: Params, net: Net, tokenizer: AnyTokenizer, sampling: SamplingConfig, *, translates: bool = False
) -> str:
    """Return `sampling.prompt` and its continuation, or its translation, to show during training.

    If the context is too short for the prompt, return the error message: a sample must not stop training.
    """
    try:
        if translates or isinstance(net, EncoderDecoder):
            return translate_text(params, net, tokenizer, sampling) if sampling.prompt.strip() else ""
        return generate_texts(params, net, tokenizer, [sampling.prompt], sampling)[0]
    except UsageError as error:
        return f"no sample: {error}"


def stream_text(
    params: Params, net: Net, tokenizer: AnyTokenizer, sampling: SamplingConfig, chunk: int = 4
) -> Iterator[str]:
    """Yield the prompt, then its continuation in pieces of `chunk` tokens. Together they are `sample_text`.

    A character whose bytes are split between two pieces is part of the second. A translation is one piece: no token is
    certain before the end of a beam search.
    """
    if isinstance(net, EncoderDecoder):
        yield translate_text(params, net, tokenizer, sampling)
        return
    ids = encode_prompt(tokenizer, sampling.prompt, net.config.max_length)
    if sampling.prompt:
        yield sampling.prompt
    yield from stream_answer(params, net, tokenizer, ids, sampling, chunk)


def stream_answer(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    ids_N: np.ndarray,
    sampling: SamplingConfig,
    chunk: int = 4,
) -> Iterator[str]:
    """Yield the continuation of the tokens `ids_N`, which must fit into the context, in pieces.

    A character that `ids_N` do not finish is in the first piece. One that the length limit cuts is dropped.
    """
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    characters.decode(tokenizer.utf8.unfinished(ids_N))
    for (new,) in sample.stream(
        params,
        net,
        [ids_N],
        replace(sampling, prompt=""),
        stop_ids=tokenizer.stop_ids,
        utf8=tokenizer.utf8,
        chunk=chunk,
    ):
        text = characters.decode(b"".join(tokenizer.token_bytes(int(i)) for i in new))
        if text:
            yield text


def continue_tokens(
    params: Params, net: Net, tokenizer: AnyTokenizer, sampling: SamplingConfig, ids_T: np.ndarray
) -> np.ndarray:
    """Return the ids that the model writes after those of a text, of which at most half a context is kept."""
    most = net.config.max_length
    ids_T = ids_T[-max(1, most // 2) :]
    sampling = replace(sampling, prompt="", max_tokens=min(sampling.max_tokens, most - len(ids_T)))
    stop_ids, utf8 = tokenizer.stop_ids, tokenizer.utf8
    return sample.generate(params, net, [ids_T], sampling, stop_ids=stop_ids, utf8=utf8)[0]
