"""chat: a conversation with the trained model on the terminal, word by word."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerotollm.actions.config import ChatOptions
from zerotollm.actions.serve import refuse_unless_it_writes_on
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.output import printable
from zerotollm.validation import validate

HELP = "/reset begins anew, /temperature 0.5 sets it, /exit ends (so does the end of the input)"


def chat(experiment: Experiment, run_dir: Path, options: ChatOptions) -> list[dict[str, str]]:
    """Reads turns from standard input and writes the answers to standard output; returns the conversation.

    Turns that the context no longer holds are dropped, the oldest first, and that is said on standard error, as
    everything else that is no answer. Raises UsageError where there is no run, where its model does not write texts and
    where an option is out of range.
    """
    sampling = replace(
        experiment.sample,
        prompt="",
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    validate(replace(experiment, sample=sampling))
    refuse_unless_it_writes_on(experiment, run_dir)
    # Imported here: nobody should wait for jax to hear that an option is out of range.
    from zerotollm.run import load
    from zerotollm.session.compilation_cache import cache_compiled_programs

    cache_compiled_programs(experiment.data)
    run = load(run_dir, options.checkpoint)
    shown = printable if sys.stdout.isatty() else str
    if experiment.train.objective != "completion":
        _say(f"{experiment.name} was never taught to answer: it writes on as in the texts that it read")
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
            asked = [*messages, {"role": "user", "content": line}]
            messages = _answer(run, asked, sampling, shown)
    return messages


def _answer(run: Any, messages: list[dict[str, str]], sampling: Any, shown: Any) -> list[dict[str, str]]:
    """Writes the answer, and returns the conversation with it; without the last turn where that cannot be read."""
    from zerotollm.data.sources.conversations import fit
    from zerotollm.decoding.text import stream_answer

    context = run.model_config.max_length
    room = min(sampling.max_tokens, max(1, context // 4))
    try:
        ids_N, kept = fit(run.tokenizer, messages, context - room)
    except UsageError as error:  # half of a surrogate pair
        _say(str(error))
        return messages[:-1]
    if len(ids_N) > context:
        _say(
            f"that is {len(ids_N):,} tokens long, and the context of this model holds {context:,}: shorten it"
        )
        return messages[:-1]
    if len(kept) < len(messages):
        dropped = len(messages) - len(kept)
        _say(f"the context of {context:,} tokens is full: the {dropped} oldest messages are forgotten")
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, context - len(ids_N) + 1))
    pieces: list[str] = []
    for piece in stream_answer(run.params, run.net, run.tokenizer, ids_N, sampling):
        piece = piece if any(pieces) else piece.lstrip(" ")
        pieces.append(piece)
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return [*kept, {"role": "assistant", "content": "".join(pieces)}]


def _lines() -> Iterator[str]:
    """What is typed. Editing and history come with readline, where there is one."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n" if sys.stdin.isatty() else "")
            return


def _with_temperature(sampling: Any, value: str) -> Any:
    try:
        temperature = float(value)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature < float("inf"):
        _say(f"the temperature is {sampling.temperature}, and /temperature takes a number from 0 on")
        return sampling
    _say(f"the temperature is {temperature}")
    return replace(sampling, temperature=temperature)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
