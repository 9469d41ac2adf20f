"""The web side of the server: HTTP requests in, responses and event streams out. `scheduler` generates the texts."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from zerotollm.serving import protocol
from zerotollm.serving.generation import Generation, Piece
from zerotollm.serving.protocol import Job, Json, RefusedError, Served
from zerotollm.serving.scheduler import Programs, write

HEAD_SECONDS = 10.0  # for the head of a request, from the start or the end of the last response
BODY_SECONDS = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
Pieces = asyncio.Queue[tuple[int, Piece] | None]
"""(index of the text, its next piece), or None where the server stops."""
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ServerState:
    served: Served
    request_bytes: int  # largest request
    most_waiting: int  # most texts that wait for a row
    api_key: str = ""  # required of every request; empty: none
    line: asyncio.Queue[Generation] = field(default_factory=asyncio.Queue)
    opened: set[Pieces] = field(default_factory=set)  # one for each request in progress


async def generate_forever(state: ServerState, programs: Programs) -> None:
    """Run the generations that requests queue; if that fails, end every request in progress."""
    try:
        await write(programs, state.line)
    finally:
        end_requests(state)


def end_requests(state: ServerState) -> None:
    for pieces in state.opened:
        pieces.put_nowait(None)


def make_app(state: ServerState, *, loopback: bool) -> Starlette:
    """Return the server's application. On `loopback` it refuses requests for other host names (DNS rebinding)."""
    page = files("zerotollm.serving").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy(page), "X-Content-Type-Options": "nosniff"}
    served = state.served

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def health(request: Request) -> Response:
        return JSONResponse({"requests": len(state.opened)})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served.card()]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != served.name:
            raise RefusedError(f"only {served.name!r} is here", "model", "model_not_found", 404)
        return JSONResponse(served.card())

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, _with_key(state, endpoint), methods=[method])

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", health),
            route("/v1/models", models),
            route("/v1/models/{name:path}", model),
            route("/v1/completions", partial(_complete, state, False), "POST"),
            route("/v1/chat/completions", partial(_complete, state, True), "POST"),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))] if loopback else [],
        exception_handlers=dict.fromkeys((RefusedError, HTTPException, ClientDisconnect), _refuse),
    )
    app.router.redirect_slashes = False  # every path is answered or refused
    return app


def _policy(page: str) -> str:
    """Allow the page's own script and style, and this server, and nothing else."""

    def source(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; {source('script')}; {source('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _with_key(state: ServerState, endpoint: Endpoint) -> Endpoint:
    """Refuse a request without the API key before its body is read."""

    async def guarded(request: Request) -> Response:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        sent = key.strip() if scheme.lower() == "bearer" else ""
        # Digests: a comparison in constant time would still reveal the key's length.
        digests = (sha256(text.encode()).digest() for text in (sent, state.api_key))
        if state.api_key and not compare_digest(*digests):
            message = "the API key is wrong" if sent else "an API key is needed: Authorization: Bearer KEY"
            raise RefusedError(message, code="invalid_api_key", status=401)
        return await endpoint(request)

    return guarded


def _refuse(request: Request, error: Exception) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if getattr(error, "status", 0) == 401 else None
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    if isinstance(error, HTTPException):
        where, headers = f"{request.method} {request.url.path}", error.headers
        error = RefusedError(f"{where}: {error.detail}", status=error.status_code)
    assert isinstance(error, RefusedError)
    return JSONResponse(error.body(), error.status, headers=headers)


async def _complete(state: ServerState, chat: bool, request: Request) -> Response:
    body = await _read(request, state.request_bytes)
    # In a thread: parsing a long prompt must not delay the tokens of other requests.
    job = await asyncio.to_thread(lambda: protocol.parse(protocol.parse_json(body), state.served, chat=chat))
    if state.line.qsize() + len(job.texts) > state.most_waiting:
        message = f"{state.line.qsize()} texts are waiting: try again later"
        raise RefusedError(message, code="busy", status=503)
    if job.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(state, job), media_type="text/event-stream", headers=headers)
    texts = asyncio.ensure_future(_collect(state, job))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({texts, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not texts.done():
            raise ClientDisconnect
        return JSONResponse(protocol.completion(job, state.served, texts.result()))
    finally:
        texts.cancel()
        gone.cancel()


async def _read(request: Request, most: int) -> bytes:
    """Return the body. Raises RefusedError where its type is not JSON, and where it is too long or late."""
    # A form on another site's page cannot send this type without a preflight request, which is never answered.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("the content-type must be application/json", status=415)
    too_long = RefusedError(f"a request may have {most:,} bytes", code="request_too_large", status=413)
    length = request.headers.get("content-length") or "0"
    if not (length.isascii() and length.isdigit()):
        raise RefusedError("the content-length must be a number")
    if len(length) > 18 or int(length) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_long
    except TimeoutError:
        raise RefusedError("the request did not arrive in time", status=408) from None
    return bytes(body)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _texts(state: ServerState, job: Job) -> AsyncGenerator[tuple[int, list[Piece]], None]:
    """Generate a job's texts; yield (index of a text, its pieces since the last time) until all have ended."""
    pieces: Pieces = asyncio.Queue()

    def emit(index: int, piece: Piece) -> None:
        pieces.put_nowait((index, piece))

    generations = [
        Generation(text, state.served.tokenizer, state.served.context, partial(emit, index))
        for index, text in enumerate(job.texts)
    ]
    state.opened.add(pieces)
    try:
        for generation in generations:
            state.line.put_nowait(generation)
        running = len(generations)
        while running:
            items = [await pieces.get()]
            while not pieces.empty():
                items.append(pieces.get_nowait())
            by_text: dict[int, list[Piece]] = {}
            for item in items:
                if item is None:
                    raise RefusedError("the server is stopping", code="stopping", status=503)
                by_text.setdefault(item[0], []).append(item[1])
            for index, new in by_text.items():
                running -= bool(new[-1].finish)
                yield index, new
    finally:
        state.opened.discard(pieces)
        for generation in generations:
            generation.done = True
        # Cancelled texts leave the queue.
        for _ in range(state.line.qsize()):
            generation = state.line.get_nowait()
            if not generation.done:
                state.line.put_nowait(generation)


async def _collect(state: ServerState, job: Job) -> list[list[Piece]]:
    texts: list[list[Piece]] = [[] for _ in job.texts]
    async for index, new in _texts(state, job):
        texts[index] += new
    return texts


async def _events(state: ServerState, job: Job) -> AsyncIterator[str]:
    texts: list[list[Piece]] = [[] for _ in job.texts]
    try:
        async with aclosing(_texts(state, job)) as following:  # a closed stream cancels its texts at once
            async for index, new in following:
                yield _event(protocol.chunk(job, state.served, index, new, first=not texts[index]))
                texts[index] += new
    except RefusedError as error:  # the response's head is already sent
        yield _event(error.body())
        return
    if job.usage:
        yield _event(protocol.usage_chunk(job, state.served, texts))
    yield "data: [DONE]\n\n"


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a time-out for request heads, for which uvicorn itself waits for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart_timer()

    def _restart_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # otherwise the response sets the next timer
            self.timeout_keep_alive_handler()
