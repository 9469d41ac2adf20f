"""Damaged and invented requests: each gets a JSON error of 4xx or what it asked for, none a 500, none hangs.

`python -m pytest -m slow tests/serving/test_fuzz_server.py` tries 10,000, and 300 as raw bytes on a socket; the tests
that always run try 20 of each.
"""

import asyncio
import contextlib
import http.client
import json
import socket
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.test_fuzz import SIZES, damaged, tried
from zerotollm.serving.app import ServerState, generate_forever, make_app
from zerotollm.serving.protocol import COMMON, IGNORED, NEUTRAL

SECONDS = 20
"""After which a request hangs."""
PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/tiny", "/health", "/"]
texts = st.text(st.characters(), max_size=6)  # of all characters, halves of surrogate pairs too
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 5)
    | st.floats()
    | texts
    | st.sampled_from([10**400, 2**63, -(2**64), 1e308, "light", ["light"], [1, 2], [[1, 2]]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.sampled_from(["user", "system", "assistant"]) | values, "content": values}
    )
    | values,
    max_size=3,
)
fields = sorted(
    COMMON | IGNORED | NEUTRAL.keys() | {"prompt", "messages", "top_logprobs", "max_completion_tokens"}
)
GOOD = {
    "/v1/completions": {"prompt": "light", "max_tokens": 2, "seed": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "light"}], "max_tokens": 2},
}
deep = st.tuples(st.integers(1, 20_000), st.sampled_from(["[", '{"a":', '{"prompt":['])).map(
    lambda pair: pair[0] * pair[1]
)


def changed(good: dict) -> st.SearchStrategy[str]:
    """A good request with some fields put in or replaced."""
    field = st.tuples(st.sampled_from(fields), values) | st.tuples(st.just("messages"), messages)
    changes = st.lists(field | st.tuples(texts, values), min_size=1, max_size=3)
    return changes.map(lambda pairs: json.dumps(good | dict(pairs)))


class Asked(NamedTuple):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def requests() -> st.SearchStrategy[Asked]:
    header = st.tuples(
        st.sampled_from([b"content-length", b"accept", b"origin", b"transfer-encoding", b"cookie"]),
        st.sampled_from([b"", b"-1", b"1e9", b"9" * 30, b"\xff\xfe", b"chunked"]) | st.binary(max_size=8),
    )
    kinds = [b"application/json"] * 6 + [b"text/plain", b"", b"application/json; charset=\xff", b"\x80"]
    hosts = [b"127.0.0.1:8000"] * 6 + [b"localhost", b"[::1]:1", b"elsewhere", b"", b"\xff"]
    methods = st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "", "\xe9"])
    paths = st.sampled_from(PATHS[:2] * 4 + PATHS) | st.text(max_size=12).map(lambda text: f"/{text}")
    paths |= st.sampled_from([f"{path}/" for path in PATHS] + ["/v1/models/" + "x" * 5000, "", "//", "/../x"])

    def asked(method: str, path: str, kind: bytes, host: bytes, more: list) -> st.SearchStrategy[Asked]:
        headers = [(b"content-type", kind), (b"host", host), *more]
        good = GOOD.get(path, GOOD[PATHS[0]])
        bodies = (
            changed(good).map(str.encode)
            | damaged(json.dumps(good).encode())
            | (deep | values.map(json.dumps)).map(str.encode)
            | st.binary(max_size=30)
        )
        return bodies.map(lambda body: Asked(method, path, headers, body))

    several = st.lists(header, max_size=2)
    return st.tuples(methods, paths, st.sampled_from(kinds), st.sampled_from(hosts), several).flatmap(
        lambda parts: asked(*parts)
    )


async def answer(app, asked: Asked) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request, as any ASGI server would give it."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": asked.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    sent, came = [], [{"type": "http.request", "body": asked.body, "more_body": False}]

    async def receive() -> dict:
        if came:
            return came.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), SECONDS)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0].get("headers", [])), body


def is_fine(asked: Asked, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
    kind = headers.get(b"content-type", b"")
    if status == 200 and kind.startswith(b"text/event-stream"):
        *events, last = body.decode().strip().split("\n\n")
        assert last == "data: [DONE]"
        for event in events:
            assert "error" not in json.loads(event.removeprefix("data: "))
    elif status == 200 and kind.startswith(b"application/json"):
        assert asked.method == "HEAD" or "error" not in json.loads(body)
    elif status == 200:
        assert asked.path == "/"
    elif body == b"Invalid host header":
        assert status == 400
    else:
        assert 400 <= status < 500, body
        assert asked.method == "HEAD" or json.loads(body)["error"]["message"].strip()


@pytest.fixture(scope="module")
def ask(tiny, served):
    """A function of a request: its answer, from the app without a socket."""
    with asyncio.Runner() as runner:

        async def begin() -> tuple:
            short = replace(served, sampling=replace(served.sampling, max_tokens=2), most_tokens=4)
            state = ServerState(short, request_bytes=50_000, most_waiting=130)
            return make_app(state, loopback=True), asyncio.create_task(generate_forever(state, tiny.programs))

        app, generating = runner.run(begin())

        def asking(asked: Asked) -> tuple[int, dict[bytes, bytes], bytes]:
            assert not generating.done(), "generation has failed"
            return runner.run(answer(app, asked))

        yield asking
        generating.cancel()


@pytest.mark.parametrize("number", SIZES)
def test_requests(ask, number):
    body = json.dumps(GOOD[PATHS[0]]).encode()
    good = Asked("POST", PATHS[0], [(b"content-type", b"application/json"), (b"host", b"localhost")], body)

    @settings(tried(number), deadline=1000 * SECONDS)
    @given(requests())
    @example(good._replace(body=rb'{"\ud800": 1}'))
    @example(good._replace(body=rb'{"prompt": "light", "stop": "\ud800", "max_tokens": 1e999}'))
    @example(good._replace(body=b"[" * 20_000))
    @example(good._replace(headers=[*good.headers, (b"content-length", b"1e9")]))
    @example(good._replace(path="/v1/completions/"))
    def attempt(asked):
        is_fine(asked, *ask(asked))

    attempt()
    assert ask(good)[0] == 200


@pytest.mark.parametrize("number", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_raw_bytes(server, number):
    host, _, port = server.removeprefix("http://").partition(":")
    body = json.dumps(GOOD[PATHS[0]]).encode()
    whole = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )

    @settings(tried(number), deadline=1000 * SECONDS)
    @given(damaged(whole) | st.binary(max_size=200) | st.binary(max_size=40).map(lambda x: whole[:40] + x))
    def attempt(content):
        got = b""
        connection = socket.create_connection((host, int(port)), timeout=SECONDS)
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                got += block
        # Nothing is owed to half a request.
        assert got == b"" or got.split()[1][:1] in (b"2", b"4"), got[:300]

    attempt()
    connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
