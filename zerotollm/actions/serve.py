"""serve: a trained model behind OpenAI's protocol, and a page to talk to it."""

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import uvicorn
from rich.progress import Progress
from starlette.applications import Starlette

from zerotollm.actions.config import ServeOptions
from zerotollm.console import Console
from zerotollm.data.sources.conversations import Message
from zerotollm.data.tokens.conversations import GREETING, EncodeConversation
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.likelihood import require_language_model
from zerotollm.experiment import Experiment
from zerotollm.host.stop_signals import stop_requests
from zerotollm.model.config import TransformerConfig
from zerotollm.planning.device_benchmark import memory_here
from zerotollm.planning.memory import largest_context, serving_memory
from zerotollm.planning.report import HOST_BYTES
from zerotollm.run import Run, load
from zerotollm.serving import scheduler
from zerotollm.serving.app import ServerState, TimedProtocol, end_requests, generate_forever, make_app
from zerotollm.serving.protocol import Served
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.shell import option
from zerotollm.validation import validate

STOP_SECONDS = 3  # time that running generations have to end when the server is asked to stop
LONGEST_KEY = 65_536  # bytes of a key file that are read
LOWER_BOUNDS = {"port": 0, "rows": 1, "context": 0, "max_tokens": 0, "waiting": 1, "request_bytes": 1}
"""Option -> its smallest value."""


def serve(experiment: Experiment, run_dir: Path, options: ServeOptions) -> None:
    """Answer requests until SIGINT or SIGTERM. All programs are compiled before the first request.

    Raises UsageError for a missing run, for a model that does not continue texts, for an option out of range, for a
    public address without a key, and for too little memory. Raises RunError for an unavailable address.
    """
    validate(experiment)
    for name, least in LOWER_BOUNDS.items():
        if getattr(options, name) < least:
            raise UsageError(f"{option(name)} is {getattr(options, name)}, and must be at least {least}")
    require_language_model(experiment, run_dir)
    loopback = options.host in ("localhost", "127.0.0.1", "::1")
    if not (loopback or options.api_key_file):
        raise UsageError(
            f"--host {options.host} admits other machines: give --api-key-file FILE too, a file with the key that "
            "their requests must send"
        )
    api_key = read_api_key(options.api_key_file) if options.api_key_file else ""
    listening = listen(options.host, options.port)
    cache_compiled_programs(experiment.data)
    run, console = load(run_dir, options.checkpoint), Console()
    model = run.model_config
    context = options.context or model.max_length
    check_memory(model, options.rows, context)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling", total=scheduler.num_programs(context))
        programs = scheduler.compile_programs(
            run.params, run.net, run.tokenizer, options.rows, context, lambda: progress.advance(task)
        )
    served = Served(
        name=experiment.name,
        tokenizer=run.tokenizer,
        context=context,
        sampling=experiment.sample,
        most_tokens=min(options.max_tokens or context, context),
        created=int(time.time()),
        chats=run.chats,
        encode_conversation=checked_encoder(run, console),
    )
    state = ServerState(served, options.request_bytes, options.waiting, api_key)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    console.print(
        f"{address} is a page to talk to {served.name}; {address}/v1 is for programs. Ctrl-C ends it",
        soft_wrap=True,
    )
    with stop_requests():  # uvicorn handles signals, and raises them again when it has stopped
        asyncio.run(serve_until_stopped(make_app(state, loopback=loopback), state, programs, listening))
    console.print("stopped")


def checked_encoder(run: Run, console: Console) -> EncodeConversation:
    """Return how the run reads conversations. If its chat template fails, say so and refuse every conversation."""
    try:
        run.encode_conversation(GREETING)
    except UsageError as error:
        reason = str(error)
        console.print(f"/v1/chat/completions refuses every request: {reason}", soft_wrap=True)

        def refuse(messages: Sequence[Message]) -> NoReturn:
            raise UsageError(reason)

        return refuse
    return run.encode_conversation


def check_memory(model: TransformerConfig, rows: int, context: int) -> None:
    """Raise UsageError for a context longer than the model's, and for more memory than the device has."""
    if context > model.max_length:
        raise UsageError(f"--context is {context:,}, and the context of this model is {model.max_length:,}")
    room = memory_here() - HOST_BYTES
    needed = serving_memory(model, rows, context)
    total = sum(needed.values())
    if total <= room:
        return
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in needed.items())
    largest = largest_context(model, rows, room)
    advice = f"--context {largest}, or fewer --rows than {rows}" if largest else f"fewer --rows than {rows}"
    raise UsageError(
        f"{rows} texts of {context:,} tokens at once take {total / 1e9:.2f} GB ({parts}), and "
        f"{max(0, room) / 1e9:.2f} GB are free: give {advice}"
    )


def read_api_key(file: str) -> str:
    """Return the key in a file, without white space around it. Raises UsageError where the file holds none."""
    try:
        with Path(file).expanduser().open("rb") as opened:
            key = opened.read(LONGEST_KEY).decode("ascii").strip()  # a device such as /dev/zero never ends
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--api-key-file is {file}, which cannot be read: {reason}") from None
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise UsageError(f"{file} holds no key: write one line into it, printable ASCII without spaces")
    return key


def listen(host: str, port: int) -> socket.socket:
    """Return a socket at the address; port 0 takes a free one. Raises RunError for an unavailable address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        message = f"cannot listen at {host} port {port}: {reason}; choose another --port or --host"
        raise RunError(message) from None
    except OverflowError:
        raise UsageError(f"--port is {port}, and must be at most 65535") from None


async def serve_until_stopped(
    app: Starlette, state: ServerState, programs: scheduler.Programs, listening: socket.socket
) -> None:
    """Serve until a signal arrives, or until generation fails, which is then raised."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_config=None,  # uvicorn's own would close the handlers of every other library
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2 * STOP_SECONDS,
    )
    server = uvicorn.Server(config)

    async def end_when_stopping() -> None:
        while not server.should_exit:
            await asyncio.sleep(0.1)
        await asyncio.sleep(STOP_SECONDS)
        end_requests(state)

    ending = asyncio.create_task(end_when_stopping())
    generating = asyncio.create_task(generate_forever(state, programs))
    generating.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve(sockets=[listening])
    ending.cancel()
    if generating.done():
        generating.result()
    generating.cancel()
