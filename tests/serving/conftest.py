"""A tiny model with random parameters: what is compiled of it serves all tests of this folder."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.functions import init_params
from zerotollm.actions.serve import listen, serve_until_stopped
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.conversations import conversation_encoder
from zerotollm.data.tokens.sentencepiece import Tokenizer, train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.serving.app import ServerState, make_app
from zerotollm.serving.protocol import Served
from zerotollm.serving.scheduler import Programs, compile_programs

WORDS = ["heaven", "earth", "light", "waters", "day", "é", "光"]
ROWS, CONTEXT = 3, 48
KEY = "open-sesame"


class Tiny(NamedTuple):
    params: Any
    model: TransformerConfig
    tokenizer: Tokenizer
    programs: Programs


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, 40)) for _ in range(60)]
    tokenizer = train_tokenizer(TokenizerConfig("bpe", 290), lines)
    config = TransformerConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, token_shift=2)
    model = resolve(config, vocab_size=tokenizer.vocab_size, context=CONTEXT)
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.asarray(noise.normal(x.ndim == 1, 0.3, x.shape), np.float32),
        jax.eval_shape(lambda: init_params(model, 0)),
    )
    return Tiny(
        params, model, tokenizer, compile_programs(params, build_net(model), tokenizer, ROWS, CONTEXT)
    )


@pytest.fixture(scope="session")
def served(tiny) -> Served:
    encode = conversation_encoder(tiny.tokenizer, trained_here=False)
    return Served("tiny", tiny.tokenizer, CONTEXT, SamplingConfig(max_tokens=20), CONTEXT, 0, False, encode)


@contextlib.contextmanager
def running(tiny: Tiny, served: Served, api_key: str = "") -> Iterator[str]:
    """The address of a server in a thread, on a port that is free."""
    listening = listen("127.0.0.1", 0)
    loops = []

    async def main() -> None:
        state = ServerState(served, request_bytes=50_000, most_waiting=130, api_key=api_key)
        loops.append((asyncio.get_running_loop(), asyncio.current_task()))
        await serve_until_stopped(make_app(state, loopback=True), state, tiny.programs, listening)

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop, task = loops[0]
    loop.call_soon_threadsafe(task.cancel)
    thread.join(timeout=120)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(tiny, served) -> Iterator[str]:
    with running(tiny, served) as address:
        yield address


@pytest.fixture(scope="module")
def locked(tiny, served) -> Iterator[str]:
    """The address of a server whose key is KEY."""
    with running(tiny, served, api_key=KEY) as address:
        yield address
