"""Render the chat template of an imported model; `conversations` runs this file in a process of its own.

A chat template is a program in Jinja by the author of the model. It runs in Jinja's sandbox, which refuses access to
Python's internals. The sandbox does not bound time and memory: the limits of the process do.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 2**29  # address space: the interpreter takes a quarter of it
MOST_CHARACTERS = 4_000_000  # of a rendered conversation


class GenerationExtension(Extension):
    """Accept `{% generation %}`, which transformers uses to mark the tokens of the assistant, and ignore it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, variables: dict[str, object]) -> str:
    """Return the rendered template. The environment is that of `apply_chat_template` in transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment.from_string(template).render(**variables)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without escapes for HTML, which Jinja's own filter adds."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _limit_resources() -> None:
    """Bound time and memory of this process, where the system can: not on Windows."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with suppress(ValueError, OSError):  # macOS accepts no limit below what a process has mapped
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Read a JSON object with template and variables; write one with text or error."""
    request = json.load(sys.stdin)
    _limit_resources()
    try:
        text = render(request["template"], request["variables"])
        if len(text) > MOST_CHARACTERS:
            raise TemplateError(f"it writes {len(text):,} characters, and {MOST_CHARACTERS:,} is the limit")
        answer = {"text": text}
    except Exception as error:  # noqa: BLE001  a template can raise anything
        words = " ".join(str(error).split())[:300]
        reason = "".join(filter(str.isprintable, words))  # no escape codes of a terminal
        answer = {
            "error": reason or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
