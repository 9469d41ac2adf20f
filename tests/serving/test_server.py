"""The server as its clients see it: OpenAI's own, a browser's requests, and those that mean no good."""

import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

from tests.serving.conftest import KEY
from zerotollm.data.sources.conversations import chat_parts
from zerotollm.data.tokens.conversations import encode_parts
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.serving import app, scheduler
from zerotollm.serving.protocol import NEUTRAL, RefusedError, parse, parse_json


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai", reason="a development requirement: requirements-dev.txt")
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(server, path, body: bytes, **headers) -> tuple[int, dict]:
    client = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    client.request("POST", path, body, headers)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_completion_streamed_or_whole_is_the_same_text(client):
    ask = {
        "model": "tiny",
        "prompt": "heaven",
        "max_tokens": 12,
        "seed": 5,
        "temperature": 1.0,
        "logprobs": 2,
    }
    whole = client.completions.create(**ask)
    (choice,) = whole.choices
    assert choice.finish_reason in ("length", "stop")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) <= 12
    events = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events[:-1]) == choice.text
    assert events[-2].choices[0].finish_reason == choice.finish_reason
    assert events[-1].usage == whole.usage
    logprobs = [p for event in events[:-1] for p in event.choices[0].logprobs.token_logprobs]
    assert logprobs == choice.logprobs.token_logprobs


def test_several_prompts_and_texts_in_one_request(client):
    ask = {"model": "tiny", "max_tokens": 8, "seed": 1, "temperature": 1.0}
    together = client.completions.create(**ask, prompt=["heaven", "day"], n=2)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    for first, prompt in ((0, "heaven"), (2, "day")):
        alone = client.completions.create(**ask, prompt=prompt)
        assert alone.choices[0].text == together.choices[first].text
        assert together.choices[first + 1].text != together.choices[first].text


def test_token_ids_are_taken_as_they_are(client, tiny):
    ask = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    ids = [1, *tiny.tokenizer.encode("heaven").tolist()]
    (text,), (same,) = (
        [choice.text for choice in client.completions.create(**ask, prompt=prompt).choices]
        for prompt in ("heaven", ids)
    )
    assert text == same


def test_lists_of_token_ids_are_several_prompts(client, tiny):
    ask = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    texts = ["heaven", "waters day"]
    ids = [[1, *tiny.tokenizer.encode(text).tolist()] for text in texts]
    assert [
        [choice.text for choice in client.completions.create(**ask, prompt=prompt).choices]
        for prompt in (texts, ids)
    ] == [[client.completions.create(**ask, prompt=text).choices[0].text for text in texts]] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_an_echo_tells_how_likely_the_prompt_is(client, tiny, max_tokens, stream):
    text = " light é 光 heaven day"
    ids = [1, *tiny.tokenizer.encode(text).tolist()]
    ask = {"model": "tiny", "max_tokens": max_tokens, "temperature": 1, "seed": 3, "logprobs": 2}
    for prompt, first in ((text, 1), (ids, 0)):
        answer = client.completions.create(**ask, prompt=prompt, echo=True, stream=stream)
        if stream:
            events = [event.choices[0] for event in answer]
            logprobs = {
                name: [value for event in events for value in getattr(event.logprobs, name)]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            }
            told, finish = "".join(event.text for event in events), events[-1].finish_reason
        else:
            (choice,) = answer.choices
            told, finish, logprobs = choice.text, choice.finish_reason, choice.logprobs.model_dump()
            assert answer.usage.prompt_tokens == len(ids)
            assert answer.usage.completion_tokens == (
                max_tokens and len(choice.logprobs.tokens) - len(ids) + first
            )
        after = client.completions.create(**ask | {"max_tokens": 6}, prompt=prompt).choices[0].text
        assert told.startswith(text)
        assert after.startswith(told[len(text) :])
        assert finish in ("length", "stop")
        given = len(ids) - first
        log_p = logprobs["token_logprobs"][:given]
        assert len(logprobs["tokens"]) - given <= max_tokens
        assert (log_p[0], logprobs["top_logprobs"][0]) == (None, None) or first
        (expected,) = log_likelihoods(
            tiny.params, tiny.model, [(np.array(ids), len(ids) - 1)], num_tokens=290, rows=1
        )
        assert sum(log_p[1 - first :]) == pytest.approx(expected.log_p, abs=1e-3)
        for name, log_p, top in list(
            zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
        )[1 - first :]:
            assert log_p in top.values()
            assert top[name] >= log_p
            assert len(top) in (2, 3)
        for name, at in zip(logprobs["tokens"][:given], logprobs["text_offset"], strict=False):
            assert told[at:].startswith(name) or name.startswith("<")


def test_the_drawn_token_is_always_among_its_own_alternatives(client):
    ask = {"model": "tiny", "max_tokens": 30, "temperature": 5, "seed": 1}
    (choice,) = client.completions.create(**ask, prompt="day", logprobs=1).choices
    assert all(log_p in top.values() for log_p, top in zip(
        choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True))  # fmt: skip
    assert 2 in [len(top) for top in choice.logprobs.top_logprobs]
    messages = [{"role": "user", "content": "day"}]
    for asked in (0, 2):
        chat = client.chat.completions.create(**ask, messages=messages, logprobs=True, top_logprobs=asked)
        for token in chat.choices[0].logprobs.content:
            named = [top.logprob for top in token.top_logprobs]
            assert named == sorted(named, reverse=True)
            assert token.logprob in named if asked else not named


def test_a_chat_is_a_completion_of_its_template(client, tiny):
    messages = [{"role": "user", "content": "Who made heaven?"}]
    ask = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    chat = client.chat.completions.create(**ask, messages=messages, logprobs=True, top_logprobs=3)
    ids = encode_parts(tiny.tokenizer, chat_parts(messages, answer=True)).tolist()
    plain = client.completions.create(**ask, prompt=ids)
    assert chat.choices[0].message.content == plain.choices[0].text.lstrip(" ")
    content = chat.choices[0].logprobs.content
    spelled = b"".join(bytes(token.bytes) for token in content)
    assert spelled.decode(errors="replace") == plain.choices[0].text
    # A greedy token that is not the likeliest follows in valid UTF-8, unlike those, and is the last of its own list.
    assert all([best.token for best in token.top_logprobs[3:]] in ([], [token.token]) for token in content)
    stream = client.chat.completions.create(**ask, messages=messages, stream=True)
    deltas = [event.choices[0].delta for event in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content for delta in deltas) == chat.choices[0].message.content


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.context_length) == ("tiny", 48)
    assert client.models.retrieve("tiny") == model


def test_many_clients_at_once_lose_nothing(client):
    ask = {"model": "tiny", "prompt": "day", "max_tokens": 10}
    alone = [client.completions.create(**ask, seed=seed).choices[0].text for seed in range(4)]
    texts = {}

    def one(number):
        texts[number] = client.completions.create(**ask, seed=number % 4).choices[0].text

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[number] for number in range(16)] == alone * 4


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"prompt": ', 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 20_000, 400, "too deep"),
        (b"[1]", 400, "a JSON list"),
        (b'{"temperature": NaN}', 400, "NaN is no JSON number"),
        (b'{"prompt": "' + b"heaven " * 100 + b'"}', 400, "the context of this model holds 48"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413, "50,000 bytes"),
        (b'{"prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"model": "gpt-4"}', 404, "only 'tiny'"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_request_is_told_why_and_the_next_one_is_served(server, body, status, message):
    answer, error = post(server, "/v1/completions", body)
    assert answer == status
    assert message in error["error"]["message"]
    assert post(server, "/v1/completions", b'{"prompt": "day", "max_tokens": 1}')[0] == 200


def test_a_long_body_of_unsaid_length_is_refused(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 4
        )
        assert b" 413 " in client.recv(200)


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("sent", [b"", HEAD], ids=["silent", "half"])
def test_a_connection_without_a_whole_head_is_closed(server, monkeypatch, sent, asked_before):
    monkeypatch.setattr(app, "HEAD_SECONDS", 0.3)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        if asked_before:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.recv(1000)
        client.sendall(sent)
        while client.recv(1000):
            pass


def test_a_head_that_comes_drop_by_drop_is_closed_and_a_long_answer_is_not(server, monkeypatch):
    monkeypatch.setattr(app, "HEAD_SECONDS", 0.2)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.settimeout(0.02)
        for drop in range(3000):
            with contextlib.suppress(TimeoutError):
                if client.recv(1000) == b"":
                    break
            with contextlib.suppress(ConnectionError):
                client.sendall(b"a" if drop else HEAD)
        else:
            pytest.fail("it is open after a minute")
    status, answer = post(server, "/v1/completions", b'{"prompt": "day", "n": 32, "max_tokens": 40}')
    assert status == 200
    assert len(answer["choices"]) == 32


@pytest.mark.parametrize(
    "authorization",
    ["", "open-sesame", "Bearer", "Bearer ", "Bearer wrong", "Basic open-sesame", "Bearer \xfc"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/completions", "/v1/chat/completions"])
def test_without_the_key_nothing_is_told(locked, path, authorization):
    client = http.client.HTTPConnection(locked.removeprefix("http://"), timeout=30)
    body = None if "models" in path else b"{}"
    client.request("POST" if body else "GET", path, body, {"Authorization": authorization})
    answer = client.getresponse()
    error = json.loads(answer.read())["error"]
    assert answer.status == 401
    assert answer.getheader("WWW-Authenticate") == "Bearer"
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


def test_with_the_key_openais_client_is_served(locked):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{locked}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
        assert client.completions.create(model="tiny", prompt="day", max_tokens=16, seed=0).choices[0].text
    with (
        openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="the API key is wrong"),
    ):
        client.models.list()


def test_a_page_of_another_site_gets_nothing(server):
    assert post(server, "/v1/completions", b"{}", content_type="text/plain")[0] == 415
    client = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
    client.request("GET", "/v1/models", headers={"Host": "elsewhere.example"})
    answer = client.getresponse()
    assert answer.status == 400
    assert b"tiny" not in answer.read()


def test_a_client_that_goes_away_frees_its_rows(server, monkeypatch):
    step, go = scheduler.step, threading.Event()

    def held(*given):  # no text ends before we have looked
        assert go.wait(120)
        return step(*given)

    monkeypatch.setattr(scheduler, "step", held)

    def requests() -> int:
        client = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
        client.request("GET", "/health")
        return json.loads(client.getresponse().read())["requests"]

    host, port = server.removeprefix("http://").split(":")
    for stream in (True, False):
        clients = []
        go.clear()
        for _ in range(4):
            ask = {"prompt": "day", "max_tokens": 40, "n": 30, "stream": stream, "temperature": 1}
            body = json.dumps(ask).encode()
            client = socket.create_connection((host, int(port)), timeout=30)
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            if stream:
                assert b" 200 " in client.recv(100)
            clients.append(client)
        end = time.monotonic() + 120
        while requests() < 4 and time.monotonic() < end:
            time.sleep(0.02)
        assert requests() == 4
        assert post(server, "/v1/completions", b'{"prompt": "day", "n": 32}')[1]["error"]["code"] == "busy"
        for client in clients:
            client.close()
        go.set()
        while requests() and time.monotonic() < end:
            time.sleep(0.02)
        assert requests() == 0
    assert post(server, "/v1/completions", b'{"prompt": "day", "max_tokens": 1}')[0] == 200


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", "hot", "must be a number"),
        ("temperature", -1, "from 0 to 100"),
        ("top_p", 1.5, "from 0 to 1"),
        ("max_tokens", 49, "from 1 to 48"),
        ("max_tokens", True, "must be a whole number"),
        ("max_tokens", 2.5, "must be a whole number"),
        ("n", 0, "from 1 to 32"),
        ("logprobs", 21, "from 0 to 20"),
        ("stop", [""], "1 to 200 characters"),
        ("stop", ["a"] * 17, "up to 16"),
        ("prompt", [], "must be a text"),
        ("prompt", [1, 290], "below 290"),
        ("prompt", [["a"]], "must be a text"),
        ("prompt", [[1], "a"], "must be a text"),
        ("prompt", [[1], []], "must be a text"),
        ("prompt", [[1, True]], "must be a text"),
        ("prompt", [[1, 290]], "below 290"),
        ("prompt", [[1]] * 33, "send several"),
        ("max_tokens", 0, "from 1 to 48"),
        ("echo", 1, "true or false"),
        ("prompt", ["a"] * 33, "send several"),
        ("stream", "yes", "true or false"),
        ("best_of", 3, "not supported"),
        ("presence_penalty", 0.5, "not supported"),
        ("temprature", 1, "did you mean temperature?"),
    ],
)
def test_a_field_that_cannot_be_is_named(served, field, value, message):
    with pytest.raises(RefusedError) as refused:
        parse({"prompt": "day", field: value}, served, chat=False)
    assert message in str(refused.value)
    assert refused.value.param == field
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "must be a list"),
        ([], "must be a list"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"role": "me", "content": "a"}], r"messages\[0\]\.role is 'me'"),
        ([{"role": [], "content": "a"}], r"messages\[0\]\.role is \[\]"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be a text"),
        ([{"role": "user", "content": "heaven " * 60}], "the context of this model holds 48"),
    ],
)
def test_messages_that_cannot_be_are_named(served, messages, message):
    with pytest.raises(RefusedError, match=message):
        parse({"messages": messages}, served, chat=True)


def test_what_asks_for_nothing_unusual_is_no_error(served):
    body = (
        {"echo": False}
        | {name: values[0] for name, values in NEUTRAL.items()}
        | {"user": "me", "seed": -1, "prompt": "a"}
    )
    body |= {"reasoning_effort": "low", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
    body |= {"parallel_tool_calls": False, "verbosity": "low"}
    job = parse(parse_json(json.dumps(body | {"stop": None}).encode()), served, chat=False)
    assert job.texts[0].sampling.seed == 2**32 - 1
    assert job.texts[0].sampling.temperature == served.sampling.temperature


@pytest.mark.parametrize("chat", [False, True])
def test_null_anywhere_means_not_given(served, chat):
    """Clients in typed languages write every field that they know; OpenAI documents most of them as nullable."""
    plain = {"prompt": "a"} if not chat else {"messages": [{"role": "user", "content": "a"}]}
    nested = {
        "stream_options": {"include_usage": None, "include_obfuscation": None},
        "response_format": {"type": "text", "json_schema": None},
        "logit_bias": {"1": None},
    }
    top = dict.fromkeys(["model", "n", "stop", "seed", "temperature", "logprobs", "stream", "tools", "user"])
    if chat:
        nested["messages"] = [{"role": "user", "content": "a", "name": None, "tool_calls": None}]
    with_nulls = parse(parse_json(json.dumps(plain | top | nested).encode()), served, chat=chat)
    without = parse(parse_json(json.dumps(plain).encode()), served, chat=chat)
    assert (with_nulls.stream, with_nulls.usage) == (without.stream, without.usage) == (False, False)
    assert np.array_equal(with_nulls.texts[0].prompt_N, without.texts[0].prompt_N)


def test_a_number_of_5000_digits_and_a_deep_value_are_refused_in_every_field(served):
    for depth in (200, 900, 960, 990):
        for value in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "9" * 4000, "9" * 5000):
            for field in ("model", "temperature", "stop", "response_format", "other"):
                with pytest.raises(RefusedError) as refused:
                    parse(parse_json(f'{{"prompt": "a", "{field}": {value}}}'.encode()), served, chat=False)
                assert len(str(refused.value)) < 300
