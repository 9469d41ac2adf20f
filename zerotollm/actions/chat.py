"""chat: a conversation with the trained model on the terminal, word by word."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path

from zerotollm.actions.config import ChatOptions
from zerotollm.data.tokens.conversations import GREETING, trim_conversation
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import stream_answer
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import require_language_model
from zerotollm.experiment import Experiment
from zerotollm.output import write_pieces
from zerotollm.run import Run, load
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.validation import validate

HELP = "/reset starts a new conversation, /temperature 0.5 sets it, /exit ends (so does the end of the input)"
Messages = list[dict[str, str]]


def chat(experiment: Experiment, run_dir: Path, options: ChatOptions) -> Messages:
    """Read turns from standard input and write answers to standard output; return the conversation.

    Raises UsageError for a missing run, for a model that does not continue texts, for a chat template that fails, and
    for an option out of range.
    """
    chosen = {name: getattr(options, name) for name in ("temperature", "max_tokens", "seed")}
    sampling = replace(experiment.sample, prompt="", **chosen)
    validate(replace(experiment, sample=sampling))
    require_language_model(experiment, run_dir)
    cache_compiled_programs(experiment.data)
    run = load(run_dir, options.checkpoint)
    run.encode_conversation(GREETING)
    if not run.chats:
        _say(f"{experiment.name} was not trained on conversations: it continues texts like its training text")
    _say(HELP)
    system = [{"role": "system", "content": options.system}] if options.system.strip() else []
    messages = list(system)
    for line in _lines():
        command, _, value = line.partition(" ")
        if not line:
            continue
        if command == "/exit":
            break
        if command == "/reset":
            messages = list(system)
            _say("a new conversation")
        elif command == "/temperature":
            sampling = _with_temperature(sampling, value)
        elif command.startswith("/"):
            _say(HELP)
        else:
            messages = _answer(run, [*messages, {"role": "user", "content": line}], sampling)
    return messages


def _answer(run: Run, messages: Messages, sampling: SamplingConfig) -> Messages:
    """Return the conversation with the answer, or without the last turn where that cannot be read."""
    context = run.model_config.max_length
    room = min(sampling.max_tokens, max(1, context // 4))
    try:
        ids_N, remembered = trim_conversation(run.encode_conversation, messages, context - room)
    except UsageError as error:  # half of a surrogate pair, or a chat template that refuses the message
        _say(str(error))
        return messages[:-1]
    if len(ids_N) > context:
        _say(
            f"that is {len(ids_N):,} tokens long and the context of this model holds {context:,}: shorten it"
        )
        return messages[:-1]
    if dropped := len(messages) - len(remembered):
        _say(f"the context of {context:,} tokens is full: the {dropped} oldest messages are dropped")
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, context - len(ids_N) + 1))
    answer = write_pieces(_without_spaces(stream_answer(run.params, run.net, run.tokenizer, ids_N, sampling)))
    return [*remembered, {"role": "assistant", "content": answer}]


def _without_spaces(pieces: Iterator[str]) -> Iterator[str]:
    """Drop the spaces before the first word."""
    started = False
    for piece in pieces:
        yield piece if started else piece.lstrip(" ")
        started = started or bool(piece.lstrip(" "))


def _lines() -> Iterator[str]:
    """Yield the lines of standard input, edited with readline on a terminal."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # absent on Windows
            import readline  # noqa: F401
    while True:
        try:
            yield input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n" if terminal else "")
            return


def _with_temperature(sampling: SamplingConfig, value: str) -> SamplingConfig:
    try:
        temperature = float(value)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature < inf:
        _say(f"the temperature is {sampling.temperature}; /temperature takes a number from 0 on")
        return sampling
    _say(f"the temperature is {temperature}")
    return replace(sampling, temperature=temperature)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
