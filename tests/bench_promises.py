"""Runs of many sizes and corpora, to fit the promises of a training and to check them.

    python tests/bench_promises.py train results/promises/fitted --first 0 --last 19
    python tests/bench_promises.py fit results/promises/fitted
    python tests/bench_promises.py train results/promises/checked --first 20 --last 54
    python launch.py promises results/promises/checked --into docs/results/promises.md
    python tests/bench_promises.py halves results/promises/fitted

`train` trains run number FIRST to LAST with `launch.py`, each in a process of its own, and keeps promise.json and
summary.json in FOLDER/NUMBER. A number decides the corpus, the sizes and the number of steps of its run. `fit` writes
the constants into `zerotollm/planning/promises.py`. `halves` foretells each half of the runs with constants fitted to
the other half, and shows how often that held.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
from scipy.optimize import nnls

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zerotollm.experiment import from_json  # noqa: E402
from zerotollm.model.config import resolve  # noqa: E402
from zerotollm.planning import promises  # noqa: E402
from zerotollm.planning.flops import counted_parameters  # noqa: E402
from zerotollm.planning.promises import COVER, Basis, Early, Fitted, Quantity  # noqa: E402
from zerotollm.studies.promise_calibration import Outcomes, markdown  # noqa: E402

sys.path.insert(0, str(ROOT))
TEXTS = (
    "bible-web",
    "bible-web",
    "bible-kjv",
    "bible-bbe",
    "sotu",
    "bible-asv",
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


Row = tuple[Basis, Early | None, dict[str, float]]
"""What was known before a run, its first steps, and its summary."""
Solve = Callable[[Sequence[Row]], tuple[float, ...]]
Foretell = Callable[[Row, tuple[float, ...]], promises.Formula]


def read_rows(folder: Path) -> list[Row]:
    """Return all kept runs of a folder."""
    rows = []
    for path in sorted(folder.glob("*/promise.json")):
        promise, summary = (
            json.loads(path.read_text()),
            json.loads((path.parent / "summary.json").read_text()),
        )
        rows.append((promise["basis"], promise.get("early"), summary))
    return rows


def suite_rows() -> list[Row]:
    """Return one run of each variant of the kept suites about which the scaling law says something."""
    rows = []
    for path in sorted((ROOT / "results").glob("*/small/*/seed-0.json")):
        record = json.loads(path.read_text())
        if record["outcome"] != "trained":
            continue
        experiment = from_json(json.dumps(record["experiment"]))
        model = resolve(
            experiment.model, vocab_size=experiment.tokenizer.vocab_size, context=experiment.data.context
        )
        tokens = experiment.train.steps * experiment.data.batch_size * experiment.data.context
        parameters = counted_parameters(model)
        if promises.not_by_law(experiment, parameters, tokens):
            continue
        basis = {
            "parameters": parameters,
            "tokens": tokens,
            "vocab_size": model.vocab_size,
            "sees_previous": model.token_shift > 0 or model.previous_token_heads > 0,
            "not_by_law": "",
        }
        rows.append((cast(Basis, basis), None, record))
    return rows


def fit(
    rows: Sequence[Row],
    foretell: Foretell,
    solve: Solve,
    measured: Quantity,
    kind: Callable[[Row], str] = lambda row: "",
) -> Fitted:
    """Fit a formula, with the interval of its errors on rows that are left out one at a time.

    Rows of each `kind` have an interval of their own, and the widest ends are taken: many rows that are alike say
    little about others.
    """
    ratios: dict[str, list[float]] = {}
    for number, row in enumerate(rows):
        others = [*rows[:number], *rows[number + 1 :]]
        certain, to_come = foretell(row, solve(others))
        ratios.setdefault(kind(row), []).append((row[2][measured] - certain) / to_come)
    ends = [interval_ends(sorted(values)) for values in ratios.values()]
    constants = tuple(float(f"{c:.4g}") for c in solve(rows))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return Fitted(constants, float(f"{low:.3g}"), float(f"{high:.3g}"), len(rows))


def interval_ends(errors: Sequence[float]) -> tuple[float, float]:
    """Return two of the sorted errors between which `COVER` of new ones are; the extremes where there are few."""
    beyond = max(1, math.floor((len(errors) + 1) * (1 - COVER) / 2))
    return errors[beyond - 1], errors[-beyond]


def least_relative(terms_PK: Sequence[Sequence[float]], values_P: Sequence[float]) -> tuple[float, ...]:
    """Return non-negative constants with the least sum of squared relative errors."""
    values = np.array(values_P)
    constants, _ = nnls(np.array(terms_PK) / values[:, None], np.ones(len(values)))
    return tuple(map(float, constants))


def least_squares(terms_PK: Sequence[Sequence[float]], values_P: Sequence[float]) -> tuple[float, ...]:
    solution, *_ = np.linalg.lstsq(np.array(terms_PK), np.array(values_P), rcond=None)
    return tuple(map(float, solution))


def fit_all(rows: Sequence[Row]) -> dict[Quantity, Fitted]:
    """Return the constants of every formula by some runs, and for the loss by the kept suites too."""

    def solve_cpu(rows: Sequence[Row]) -> tuple[float, ...]:
        terms = [promises.time_terms(basis) for basis, _, _ in rows]
        return least_relative(terms, [s["cpu_seconds"] - b["cpu_seconds"] for b, _, s in rows])

    cpu = fit(rows, lambda row, c: promises.cpu_seconds(row[0], c), solve_cpu, "cpu_seconds")

    def solve_seconds(rows: Sequence[Row]) -> tuple[float, ...]:
        terms = [[promises.seconds(basis, (1.0,), cpu.constants).to_come] for basis, _, _ in rows]
        return least_relative(terms, [s["seconds"] - b["seconds"] for b, _, s in rows])

    def solve_memory(rows: Sequence[Row]) -> tuple[float, ...]:
        terms = [(float(b["step_memory"]), 1e8) for b, _, _ in rows]
        of_step, rest = least_relative(
            terms, [s["peak_memory_bytes"] - b["resident_bytes"] for b, _, s in rows]
        )
        return of_step, 1e8 * rest

    def solve_loss(rows: Sequence[Row]) -> tuple[float, ...]:
        terms = [(1.0, math.log2(b["vocab_size"] / 1024), 1.0 - b["sees_previous"]) for b, _, _ in rows]
        laws = [promises.LAW(b["parameters"], b["tokens"]) for b, _, _ in rows]
        values = [math.log(s["validation_bpb"] / law) for (_, _, s), law in zip(rows, laws, strict=True)]
        return least_squares(terms, values)

    by_law = [*(row for row in rows if not row[0]["not_by_law"]), *suite_rows()]
    early = [row for row in rows if row[1]]
    return {
        "cpu_seconds": cpu,
        "seconds": fit(
            rows, lambda row, c: promises.seconds(row[0], c, cpu.constants), solve_seconds, "seconds"
        ),
        "step_seconds": fit(
            early,
            lambda row, _: promises.step_seconds(row[0], cast(Early, row[1])["durations"]),
            lambda rows: (),
            "step_seconds",
        ),
        "peak_memory_bytes": fit(
            rows, lambda row, c: promises.peak_memory_bytes(row[0], c), solve_memory, "peak_memory_bytes"
        ),
        "validation_bpb": fit(
            by_law,
            lambda row, c: promises.validation_bpb(row[0], c),
            solve_loss,
            "validation_bpb",
            lambda row: "suite" if "variant" in row[2] else "run",
        ),
    }


def write_constants(fitted: dict[Quantity, Fitted]) -> None:
    """Replace `FITTED` in the package."""
    path = ROOT / "zerotollm" / "planning" / "promises.py"
    lines = "".join(f'    "{quantity}": {value},\n' for quantity, value in fitted.items())
    before, start, rest = path.read_text(encoding="utf-8").partition("FITTED: dict[Quantity, Fitted] = {\n")
    _, end, after = rest.partition("}\n")
    path.write_text(f"{before}{start}{lines}{end}{after}", encoding="utf-8")
    print(lines)


def halves(rows: Sequence[Row]) -> Outcomes:
    """Return what came of promises for each half of the runs by constants that the other half gives."""
    judged = {}
    for part in (0, 1):
        fitted = fit_all(rows[1 - part :: 2])
        for number, (basis, early, summary) in enumerate(rows[part::2]):
            before, left_out = promises.foretell(basis, fitted)
            promise: promises.Promises = {
                "format": promises.FORMAT,
                "basis": basis,
                "before": before,
                "left_out": left_out,
            }
            if early:
                promise["after_early"] = promises.foretell_early(basis, early["durations"], fitted)
            judged[f"run {2 * number + part}"] = promises.judge(promise, summary, None)
    return Outcomes(judged, (), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("train", "fit", "halves"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=19)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout that trains")
    arguments = parser.parse_args()
    if arguments.what == "fit":
        write_constants(fit_all(read_rows(arguments.folder)))
        return
    if arguments.what == "halves":
        print(markdown(halves(read_rows(arguments.folder))))
        return
    numbers = range(arguments.first, arguments.last + 1)
    with ThreadPoolExecutor(arguments.workers) as threads:
        for line in threads.map(lambda n: train(n, arguments.folder, arguments.source), numbers):
            print(line, flush=True)


if __name__ == "__main__":
    main()
