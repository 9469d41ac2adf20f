"""chat: turns in, answers out, around a model with random parameters; and conversations that must fit."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.functions import init_params
from zerotollm.actions.chat import chat
from zerotollm.actions.config import ChatOptions
from zerotollm.actions.serve import checked_encoder
from zerotollm.console import Console
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.sources.conversations import chat_parts, check_messages
from zerotollm.data.tokens.conversations import conversation_encoder, encode_parts, trim_conversation
from zerotollm.data.tokens.pretrained import ChatTemplate, pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.interop.tokenizer_json import tokenizer_json
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.run import Run
from zerotollm.serving.protocol import RefusedError, Served, parse

EXPERIMENT = Experiment()
OPTIONS = ChatOptions(max_tokens=12, temperature=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        TokenizerConfig("char", 40, byte_fallback=False), ["User: Assistant: heaven and earth"] * 5
    )


@pytest.fixture(scope="module")
def run(tokenizer) -> Run:
    model = resolve(
        TransformerConfig(num_layers=1, width=16, num_heads=2), vocab_size=tokenizer.vocab_size, context=80
    )
    params = init_params(model, 0)
    return Run(Path("nowhere"), EXPERIMENT, model, 0, params | {"head": params["head"] * 50}, tokenizer)


@pytest.fixture
def talk(run, monkeypatch, capsys):
    """Types lines and returns (conversation, what was written, what was said besides)."""
    monkeypatch.setattr("zerotollm.actions.chat.load", lambda path, step: run)
    monkeypatch.setattr("zerotollm.actions.chat.cache_compiled_programs", lambda data: None)

    def typed(*lines: str, options: ChatOptions = OPTIONS):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        messages = chat(EXPERIMENT, Path("nowhere"), options)
        return messages, *capsys.readouterr()

    return typed


def test_a_conversation_goes_on_and_begins_anew(talk):
    messages, out, err = talk("heaven", "earth")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert out == "".join(f"{m['content']}\n" for m in messages[1::2])
    assert "not trained on conversations" in err
    again, _, said = talk("earth", "/reset", "heaven", "", "/exit", "not read")
    assert again == messages[:2]  # the same seed, and nothing of the earth
    assert "a new conversation" in said


def test_commands_that_are_wrong_say_what_is_right(talk):
    _, out, err = talk("/temperature hot", "/temperature -1", "/temperature 0", "/what")
    assert out == ""
    assert err.count("/temperature takes a number from 0 on") == 2
    assert "the temperature is 0.0" in err
    assert err.count("/reset starts a new conversation") == 2


def test_the_oldest_turns_are_forgotten_and_that_is_said(talk):
    _, _, err = talk("heaven and earth", "and heaven", "earth", options=replace(OPTIONS, system="and"))
    assert "the context of 80 tokens is full" in err
    messages, out, err = talk("heaven " * 20)
    assert (messages, out) == ([], "")
    assert "the context of this model holds 80" in err


def test_what_is_forgotten_is_the_least_and_never_what_the_system_says(tokenizer):
    def said(role, text):
        return {"role": role, "content": text}

    messages = [
        said("system", "and"),
        said("user", "a"),
        said("assistant", "e"),
        said("user", "a"),
        said("user", "v"),
    ]
    encode = conversation_encoder(tokenizer, trained_here=True)
    whole = len(encode_parts(tokenizer, chat_parts(messages, answer=True)))
    for most in range(whole + 1):
        ids_N, kept = trim_conversation(encode, messages, most)
        assert kept[0] == messages[0]
        assert kept[-1] == messages[-1]
        assert kept[1]["role"] == "user"
        assert np.array_equal(ids_N, encode_parts(tokenizer, chat_parts(kept, answer=True)))
        assert len(ids_N) <= most or len(kept) == 2
    assert trim_conversation(encode, messages, whole)[1] == messages


def test_options_out_of_range_and_models_without_a_voice_are_refused_before_any_work(talk):
    with pytest.raises(UsageError, match="temperature"):
        talk(options=replace(OPTIONS, temperature=-1.0))
    data = replace(EXPERIMENT.data, corpus="bible-wyc:bible-web")
    pair = replace(EXPERIMENT, data=data, model=TransformerConfig(architecture="encoder-decoder"))
    with pytest.raises(UsageError, match="no language model"):
        chat(pair, Path("nowhere"), OPTIONS)


def with_template(run: Run, source: str) -> Run:
    """The run, imported with a chat template."""
    fields = tokenizer_json(run.tokenizer, sentences=False)
    template = ChatTemplate(source, {})
    tokenizer = pretrained_tokenizer(
        fields, bos_id=1, eos_id=1, pad_id=0, chat_template=template, source="here"
    )
    return replace(run, tokenizer=tokenizer)


def test_an_imported_model_speaks_in_its_own_template_or_not_at_all(run, talk, monkeypatch, capsys):
    imported = with_template(
        run, "{{ messages[-1]['content'] }}{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}"
    )
    monkeypatch.setattr("zerotollm.actions.chat.load", lambda path, step: imported)
    asked = []
    monkeypatch.setattr(
        "zerotollm.actions.chat.stream_answer", lambda *given: asked.append(given[3]) or iter(["earth"])
    )
    messages, _, err = talk("heaven", "and")
    assert [ids.tolist() for ids in asked] == [run.tokenizer.encode("heaven").tolist()]
    assert "cannot write this conversation: division by zero" in err
    assert "not trained on conversations" not in err
    assert len(messages) == 2
    refused = with_template(run, "{{ raise_exception('never') }}")
    monkeypatch.setattr("zerotollm.actions.chat.load", lambda path, step: refused)
    with pytest.raises(UsageError, match="chat_template cannot write this conversation: never"):
        talk("heaven")
    encode = checked_encoder(refused, Console())
    served = Served("tiny", refused.tokenizer, 80, SamplingConfig(), 80, 0, True, encode)
    assert "refuses every request" in capsys.readouterr().out
    with pytest.raises(RefusedError, match="this conversation: never") as caught:
        parse({"messages": [{"role": "user", "content": "heaven"}]}, served, chat=True)
    assert caught.value.status == 400


def test_an_answer_begins_without_a_space_however_its_pieces_are_cut(talk, monkeypatch):
    monkeypatch.setattr(
        "zerotollm.actions.chat.stream_answer", lambda *_: iter([" ", " ", " Hello", " world"])
    )
    messages, out, _ = talk("heaven")
    assert out == "Hello world\n"
    assert messages[-1]["content"] == "Hello world"


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_system_message_is_left_out_in_training_by_serve_and_by_chat(
    run, talk, monkeypatch, content
):
    turns = [{"role": "user", "content": "heaven"}, {"role": "assistant", "content": "earth"}]
    with_system = [{"role": "system", "content": content}, *turns]
    assert chat_parts(check_messages("line 1", with_system)) == chat_parts(turns)
    asked = []
    monkeypatch.setattr(
        "zerotollm.actions.chat.stream_answer", lambda *given: asked.append(given[3]) or iter(["earth"])
    )
    talk("heaven", options=replace(OPTIONS, system=content))
    served = Served("tiny", run.tokenizer, 80, SamplingConfig(), 80, 0, True, run.encode_conversation)
    for messages in (with_system[:2], turns[:1], [{"role": "developer", "content": content}, turns[0]]):
        (answer,) = parse({"messages": messages}, served, chat=True).texts
        assert np.array_equal(answer.prompt_N, asked[0])
    with pytest.raises(UsageError, match="message 1 has no content"):
        check_messages("line 1", [{"role": "user", "content": content}, turns[1]])
