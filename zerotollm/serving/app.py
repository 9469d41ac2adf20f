"""The server's web side: requests in, texts and streams out. What is written, and how, is not known here."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zerotollm.serving import protocol
from zerotollm.serving.generation import Generation, Piece
from zerotollm.serving.protocol import Job, RefusedError, Served
from zerotollm.serving.scheduler import Programs, write

BODY_SECONDS = 30.0
"""A request that has not come by then is given up."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
Pieces = asyncio.Queue[tuple[int, Piece] | None]
"""(number of the text, what it gained), or None where no more can come."""
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ServerState:
    """What all requests share."""

    served: Served
    request_bytes: int
    """most of a request"""
    most_waiting: int
    """most texts that wait for a row"""
    api_key: str = ""
    """what a request must bring; empty: nothing"""
    line: asyncio.Queue[Generation] = field(default_factory=asyncio.Queue)
    opened: set[Pieces] = field(default_factory=set)
    """one for each request that is being answered"""


async def write_for(desk: ServerState, programs: Programs) -> None:
    """Writes what comes to the desk, for ever; if that fails, nobody is left waiting."""
    try:
        await write(programs, desk.line)
    finally:
        hang_up(desk)


def hang_up(desk: ServerState) -> None:
    """Ends every request that is being answered."""
    for pieces in desk.opened:
        pieces.put_nowait(None)


def make_app(desk: ServerState, *, loopback: bool) -> Starlette:
    """The pages of the server. On `loopback` a page of another name that a browser was sent here for gets nothing."""
    ask = {"/v1/completions": False, "/v1/chat/completions": True}
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy(page), "X-Content-Type-Options": "nosniff"}
    routes = [
        Route("/", _answer(lambda _: HTMLResponse(page, headers=headers))),
        Route("/health", _answer(lambda _: JSONResponse({"requests": len(desk.opened)}))),
        Route("/v1/models", _with_key(desk, _answer(lambda _: JSONResponse(_models(desk.served))))),
        Route("/v1/models/{name:path}", _with_key(desk, _answer(partial(_model, desk.served)))),
        *(
            Route(path, _with_key(desk, partial(_complete, desk, chat)), methods=["POST"])
            for path, chat in ask.items()
        ),
    ]
    hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))] if loopback else []
    handlers = {RefusedError: _refuse, HTTPException: _refuse_http, ClientDisconnect: _nobody}
    app = Starlette(routes=routes, middleware=hosts, exception_handlers=handlers)
    app.router.redirect_slashes = False  # an answer is an answer or an error
    return app


def _policy(page: str) -> str:
    """The page's own script and style, this server, and nothing else."""
    own = {}
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        own[tag] = f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
    return (
        f"default-src 'none'; script-src {own['script']}; style-src {own['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _answer(make: Callable[[Request], Response]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return make(request)

    return endpoint


def _with_key(desk: ServerState, endpoint: Endpoint) -> Endpoint:
    """The same for a request that brings the key; any other is refused before its body is read."""

    async def guarded(request: Request) -> Response:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        brought = key.strip() if scheme.lower() == "bearer" else ""
        # Digests: a comparison in constant time would still tell the length.
        digests = (sha256(text.encode()).digest() for text in (brought, desk.api_key))
        if desk.api_key and not compare_digest(*digests):
            message = "the API key is wrong" if brought else "an API key is needed: Authorization: Bearer KEY"
            raise RefusedError(message, code="invalid_api_key", status=401)
        return await endpoint(request)

    return guarded


def _models(served: Served) -> dict[str, Any]:
    return {"object": "list", "data": [served.card()]}


def _model(served: Served, request: Request) -> Response:
    if request.path_params["name"] != served.name:
        raise RefusedError(f"only {served.name!r} is here", "model", "model_not_found", 404)
    return JSONResponse(served.card())


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error.body(), error.status, headers=headers)


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = RefusedError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    return JSONResponse(refused.body(), error.status_code, headers=error.headers)


def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _complete(desk: ServerState, chat: bool, request: Request) -> Response:
    body = await _read(request, desk.request_bytes)
    # In a thread: a long prompt must not hold up the tokens of others.
    job = await asyncio.to_thread(lambda: protocol.parse(protocol.parse_json(body), desk.served, chat=chat))
    if desk.line.qsize() + len(job.texts) > desk.most_waiting:
        raise RefusedError(f"{desk.line.qsize()} texts are waiting: try again later", code="busy", status=503)
    if job.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(desk, job), media_type="text/event-stream", headers=headers)
    written = asyncio.ensure_future(_collect(desk, job))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({written, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not written.done():
            raise ClientDisconnect
        return JSONResponse(protocol.whole(job, desk.served, written.result()))
    finally:
        written.cancel()
        gone.cancel()


async def _read(request: Request, most: int) -> bytes:
    """The body. Raises RefusedError where it is no JSON by its own word, too long, or late."""
    # A form that another site's page sends is never of this type without asking first, which nobody answers here.
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
        raise RefusedError("the request did not come in time", status=408) from None
    return bytes(body)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _written(desk: ServerState, job: Job) -> AsyncIterator[Pieces]:
    """The pieces of a job's texts while the block runs; then nobody writes them any more."""
    pieces: Pieces = asyncio.Queue()
    writings = [
        Generation(
            wanted,
            desk.served.tokenizer,
            desk.served.context,
            lambda piece, index=index: pieces.put_nowait((index, piece)),
        )
        for index, wanted in enumerate(job.texts)
    ]
    desk.opened.add(pieces)
    try:
        for writing in writings:
            desk.line.put_nowait(writing)
        yield pieces
    finally:
        desk.opened.discard(pieces)
        for writing in writings:
            writing.done = True
        # Texts that nobody waits for any more take no place in the line.
        for _ in range(desk.line.qsize()):
            writing = desk.line.get_nowait()
            if not writing.done:
                desk.line.put_nowait(writing)


async def _next(pieces: Pieces) -> dict[int, list[Piece]]:
    """All that has come since, at least one piece, by the number of the text."""
    found: dict[int, list[Piece]] = {}
    waiting = [await pieces.get()]
    while not pieces.empty():
        waiting.append(pieces.get_nowait())
    for item in waiting:
        if item is None:
            raise RefusedError("the server is stopping", code="stopping", status=503)
        found.setdefault(item[0], []).append(item[1])
    return found


async def _collect(desk: ServerState, job: Job) -> list[list[Piece]]:
    written: list[list[Piece]] = [[] for _ in job.texts]
    async with _written(desk, job) as pieces:
        while not all(text and text[-1].finish for text in written):
            for index, new in (await _next(pieces)).items():
                written[index] += new
    return written


async def _events(desk: ServerState, job: Job) -> AsyncIterator[str]:
    """Server-sent events: what came since the last one, as often as somebody reads."""
    written: list[list[Piece]] = [[] for _ in job.texts]
    async with _written(desk, job) as pieces:
        while not all(text and text[-1].finish for text in written):
            try:
                following = await _next(pieces)
            except RefusedError as error:  # the head of the answer is out already
                yield _event(error.body())
                return
            for index, new in following.items():
                yield _event(protocol.chunk(job, desk.served, index, new, first=not written[index]))
                written[index] += new
    if job.usage:
        yield _event(protocol.last_chunk(job, desk.served, written))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
