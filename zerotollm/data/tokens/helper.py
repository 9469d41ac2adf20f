"""Further processes that prepare the same tokens: `helped` starts them, and each reads its task from standard input.

Processes divide the shards of a text among them (see `shards.py`), so no result is sent back. A helper ends with the
process that started it.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer
from zerotollm.data.tokens.shards import SHARDS, prepare_in_shards
from zerotollm.errors import RunError, UsageError

ROOT = Path(__file__).parents[3]


@contextmanager
def helped(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, *, shards: int = SHARDS, helpers: int = 1
) -> Iterator[None]:
    """Let `helpers` processes prepare the tokens that this one prepares during the block."""
    task = {"data": asdict(data), "shards": shards, "parent": os.getpid()}
    if isinstance(tokenizer, TokenizerConfig):
        task["train"] = asdict(tokenizer)
    else:
        task["model"] = base64.b64encode(tokenizer.model).decode()
    with ExitStack() as stack:
        for _ in range(helpers):
            process = subprocess.Popen(
                [sys.executable, "-m", "zerotollm.data.tokens.helper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            if process.stdin:
                with suppress(BrokenPipeError), process.stdin as pipe:
                    pipe.write(json.dumps(task).encode())
        yield


def main() -> None:
    """Prepare what the standard input says, as long as the process that started this one lives."""
    task = json.load(sys.stdin)

    def progress(done: int, total: int) -> None:
        if os.getppid() != task["parent"]:
            sys.exit()

    if "train" in task:
        tokenizer = TokenizerConfig(**task["train"])
    else:
        model = base64.b64decode(task["model"])
        tokenizer = PretrainedTokenizer(model) if model.startswith(b"{") else Tokenizer(model)
    with suppress(
        UsageError, RunError
    ):  # the process that started this one meets the same error, and reports it
        prepare_in_shards(DataConfig(**task["data"]), tokenizer, shards=task["shards"], progress=progress)


if __name__ == "__main__":
    main()
