"""serve: a trained model behind OpenAI's protocol, and a page to talk to it."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

from zerotollm.actions.config import ServeOptions
from zerotollm.actions.plan import HOST_BYTES
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.stop_signals import stop_requests
from zerotollm.model.config import TransformerConfig
from zerotollm.validation import validate

STOP_SECONDS = 3
"""Texts that are being written when the server is asked to stop may take so long to end."""

MOST_KEY = 65_536
"""Bytes of a key that are read."""


def serve(experiment: Experiment, run_dir: Path, options: ServeOptions) -> None:
    """Answers requests until SIGINT or SIGTERM. Everything is compiled before the first.

    Raises UsageError where there is no run, where its model has an encoder, where an option is out of range, where
    other machines could ask without a key and where memory does not suffice. Raises RunError where the address cannot
    be had.
    """
    validate(experiment)
    least_of = {"port": 0, "rows": 1, "context": 0, "max_tokens": 0, "waiting": 1, "request_bytes": 1}
    for name, least in least_of.items():
        if getattr(options, name) < least:
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, and must be at least {least}"
            )
    refuse_unless_it_writes_on(experiment, run_dir)
    loopback = options.host in ("localhost", "127.0.0.1", "::1")
    if not (loopback or options.api_key_file):
        raise UsageError(
            f"--host {options.host} lets other machines ask: give --api-key-file FILE too, a file that holds the key "
            "which they must bring"
        )
    api_key = read_api_key(options.api_key_file) if options.api_key_file else ""
    listening = listen(options.host, options.port)

    from rich.progress import Progress

    from zerotollm.console import Console
    from zerotollm.run import load
    from zerotollm.serving import scheduler
    from zerotollm.serving.app import ServerState, make_app
    from zerotollm.serving.protocol import Served
    from zerotollm.session.compilation_cache import cache_compiled_programs

    cache_compiled_programs(experiment.data)
    run, console = load(run_dir, options.checkpoint), Console()
    model = run.model_config
    context = options.context or model.max_length
    refuse_unless_it_fits(model, options.rows, context)
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
        chats=experiment.train.objective == "completion",
    )
    desk = ServerState(served, options.request_bytes, options.waiting, api_key)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    console.print(
        f"{address} is a page to talk to {served.name}; {address}/v1 is for programs. Ctrl-C ends it",
        highlight=False,
        soft_wrap=True,
    )
    with stop_requests():  # the server listens to signals itself, and sends them on when it has stopped
        asyncio.run(serve_until_stopped(make_app(desk, loopback=loopback), desk, programs, listening))
    console.print("stopped")


def refuse_unless_it_writes_on(experiment: Experiment, run_dir: Path) -> None:
    """Raises UsageError for a model that translates with an encoder, or labels texts."""
    other = experiment.model.architecture == "encoder-decoder" or experiment.train.objective == "label"
    if other:
        raise UsageError(f"{run_dir} holds no model that writes a text on: see generate")


def refuse_unless_it_fits(model: TransformerConfig, rows: int, context: int) -> None:
    """Raises UsageError where the model holds no such context, and where the memory of the device does not."""
    from zerotollm.planning.device_benchmark import memory_here
    from zerotollm.planning.memory import largest_context, serving_memory

    if context > model.max_length:
        raise UsageError(f"--context is {context:,}, and the context of this model is {model.max_length:,}")
    room = memory_here() - HOST_BYTES
    needed = serving_memory(model, rows, context)
    if sum(needed.values()) <= room:
        return
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in needed.items())
    largest = largest_context(model, rows, room)
    advice = f"--context {largest}, or fewer --rows than {rows}" if largest else f"fewer --rows than {rows}"
    raise UsageError(
        f"{rows} texts of {context:,} tokens at once take {sum(needed.values()) / 1e9:.2f} GB ({parts}), and there is "
        f"room for {max(0, room) / 1e9:.2f} GB: give {advice}"
    )


def read_api_key(file: str) -> str:
    """The key in a file, without the white space around it. Raises UsageError where the file holds none."""
    try:
        with Path(file).expanduser().open("rb") as opened:
            key = opened.read(MOST_KEY).decode("ascii").strip()  # a device would be read without end
    except OSError as error:
        raise UsageError(
            f"--api-key-file is {file}, which cannot be read: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise UsageError(
            f"{file} holds no key: write one line into it, of letters, digits and signs in ASCII"
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes a free one. Raises RunError where it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise RunError(
            f"cannot listen at {host} port {port}: {reason}; choose another --port or --host"
        ) from None
    except OverflowError:
        raise UsageError(f"--port is {port}, and must be at most 65535") from None


async def serve_until_stopped(app: Any, desk: Any, programs: Any, listening: socket.socket) -> None:
    """Serves until a signal comes, or until writing fails, which is then raised."""
    import uvicorn

    from zerotollm.serving.app import hang_up, write_for
    from zerotollm.serving.connection import TimedProtocol

    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2 * STOP_SECONDS,
    )
    server = uvicorn.Server(config)

    async def end_texts() -> None:
        while not server.should_exit:
            await asyncio.sleep(0.1)
        await asyncio.sleep(STOP_SECONDS)
        hang_up(desk)

    ending = asyncio.create_task(end_texts())
    writing = asyncio.create_task(write_for(desk, programs))
    writing.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve(sockets=[listening])
    ending.cancel()
    if writing.done():
        writing.result()
    writing.cancel()
