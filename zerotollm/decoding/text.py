"""Text in, text out: the tokenizer around `zerotollm.decoding.sample`."""

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
    """The ids of the start of a document: bos, then the prompt. UsageError where the context cannot hold it."""
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompt)]).astype(np.int32)
    if len(ids) > max_length:
        raise UsageError(
            f"the prompt is {len(ids) - 1:,} tokens long and the context of this model holds "
            f"{max_length - 1:,}: shorten it"
        )
    return ids


def generate_texts(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig,
) -> list[str]:
    """Each prompt followed by its continuation, drawn as one batch."""
    ids = [encode_prompt(tokenizer, prompt, net.config.max_length) for prompt in prompts]
    drawn = sample.generate(
        params, net, ids, sampling, stop_id=tokenizer.stop_id, num_tokens=tokenizer.vocab_size
    )
    return [prompt + tokenizer.decode(new) for prompt, new in zip(prompts, drawn, strict=True)]


def sample_text(
    params: Params,
    net: Net,
    tokenizer: AnyTokenizer,
    sampling: SamplingConfig,
    *,
    translates: bool = False,
) -> str:
    """`sampling.prompt` and its continuation, or what it is translated to, as training shows it: where the context does
    not hold the prompt, that is said in its place, since no sample may cost a training."""
    try:
        if translates or isinstance(net, EncoderDecoder):
            return translate_text(params, net, tokenizer, sampling) if sampling.prompt.strip() else ""
        return generate_texts(params, net, tokenizer, [sampling.prompt], sampling)[0]
    except UsageError as error:
        return f"no sample: {error}"


def stream_text(
    params: Params, net: Net, tokenizer: AnyTokenizer, sampling: SamplingConfig, chunk: int = 4
) -> Iterator[str]:
    """First the prompt, then its continuation in pieces of `chunk` tokens as they are drawn.

    A character whose bytes lie in two pieces is shown with the second. The pieces joined are `sample_text`. What an
    encoder-decoder writes is one piece: until the end of a beam search no token is certain.
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
    """What a decoder writes after the tokens `ids_N`, of which the context holds all, piece by piece."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for (new,) in sample.stream(
        params,
        net,
        [ids_N],
        replace(sampling, prompt=""),
        stop_id=tokenizer.stop_id,
        num_tokens=tokenizer.vocab_size,
        chunk=chunk,
    ):
        text = characters.decode(b"".join(tokenizer.token_bytes(int(i)) for i in new))
        if text:
            yield text
    rest = characters.decode(b"", final=True)
    if rest:
        yield rest
