"""Runs of many sizes and corpora, to fit the promises of a training and to check them.

    python tests/bench_promises.py train FOLDER --first 0 --last 19 [--workers 2]
    python tests/bench_promises.py fit results/promises/fitted
    python launch.py promises results/promises/checked

`train` trains run number FIRST to LAST with `launch.py`, each in a process of its own, and keeps promise.json and
summary.json in FOLDER/NUMBER. A number decides the corpus, the sizes and the number of steps of its run. `fit` prints
the constants of `zerotollm.planning.promises.FITTED`.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TEXTS = (
    "bible-web",
    "bible-web",
    "bible-kjv",
    "bible-bbe",
    "sotu",
    "zerotollm/**/*.py",
    "docs/**/*.md",
    "bible-wyc:bible-web",
)
FLOPS = 2.5e11
"""The most of a run, for some seconds of one core."""
LAW = (250_000, 700_000)
"""Tokens of the runs on bible-web, about which the scaling law says something."""


def fields(number: int) -> tuple[str, dict[str, object]]:
    """Return the experiment and the fields of a run."""
    draw = random.Random(number)
    corpus = TEXTS[number % len(TEXTS)]
    pairs = ":" in corpus
    while True:
        width, layers = (
            draw.choice((64, 96, 128, 160) if corpus == "bible-web" else (32, 64, 96, 128, 160, 192)),
            draw.randint(1, 4),
        )
        vocab, context = draw.choice((1024, 1536, 2048, 4096)), draw.choice((64, 128, 256))
        batch, steps = draw.choice((4, 8, 16)), draw.randrange(50, 401, 10)
        per_step = batch * context
        if corpus == "bible-web":
            steps = round(draw.uniform(*LAW) / per_step / 10) * 10
        size = vocab * width + (2 * layers if pairs else layers) * 14 * width**2
        if 6 * size * per_step * steps <= FLOPS * (2.5 if corpus == "bible-web" else 1):
            break
    heads = width // 32
    values: dict[str, object] = {
        "data.corpus": corpus,
        "data.context": 96 if pairs else context,
        "data.batch_size": batch,
        "tokenizer.vocab_size": vocab,
        "model.num_layers": layers,
        "model.width": width,
        "model.num_heads": heads,
        "optimizer.block": 32,
        "optimizer.warmup_steps": max(1, min(20, steps // 10)),
        "train.steps": steps,
        "train.eval_every": draw.choice((0, 0, steps // 2)),
        "train.sample_every": 0,
        "train.checkpoint_every": 0,
        "train.seed": number,
    }
    if pairs:
        return "translate", values | {"model.encoder_layers": layers}
    planted = draw.choice((0, min(3, heads)))
    dropout = draw.choice((0.0, 0.0, 0.1))
    return "base", values | {"model.previous_token_heads": planted, "model.dropout": dropout}


def train(number: int, folder: Path, source: Path) -> str:
    """Train a run, and keep its promise and its summary."""
    experiment, values = fields(number)
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    kept = folder / f"{number:03}"
    if (kept / "summary.json").exists():
        return f"{number}: is there"
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "launch.py", "--experiment", experiment, "--run-dir", f"{run}/run", *words]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True)
        if done.returncode:
            return f"{number}: exit code {done.returncode}: {done.stderr.strip()[-300:]}"
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("promise.json", "summary.json", "config.json"):
            shutil.copy(f"{run}/run/{name}", kept / name)
    return f"{number}: {values}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("train", "fit"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=19)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout that trains")
    arguments = parser.parse_args()
    if arguments.what == "train":
        numbers = range(arguments.first, arguments.last + 1)
        with ThreadPoolExecutor(arguments.workers) as threads:
            for line in threads.map(lambda n: train(n, arguments.folder, arguments.source), numbers):
                print(line, flush=True)


if __name__ == "__main__":
    main()
