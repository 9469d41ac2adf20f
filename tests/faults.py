"""Every fault we know of, done to a small run, and what came of it: a table.

    python -m tests.faults                                    50 kills at random moments, and all other faults
    python -m tests.faults --moments 10 --into docs/explanation/reliability.md --seed 7
    python -m tests.faults --only kill,artifact               some groups of faults alone

Every run is `python launch.py` in a process of its own. It is disturbed, started again as a person would, and its
parameters, metrics and samples are compared, bit for bit, with those of a run that was left alone.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fault_lab import (
    EVERY,
    STEPS,
    TIMEOUT,
    Lab,
    same_run,
    saved_step,
    step_of,
    wait_for,
    write_text,
)

CHAIN = 4
"""Kills of one run, before it is left to end."""
MARKS = ("<!-- faults -->", "<!-- end of faults -->")


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    happened: str
    lost: str
    """steps that had to be computed again"""
    same: str
    """whether the finished run has the bits of an undisturbed one"""
    good: bool


def last_line(out: str) -> str:
    lines = [line for line in out.splitlines() if line.startswith("error:")]
    return (lines or out.strip().splitlines() or ["nothing"])[-1][:160]


def again(lab: Lab, run_dir: Path, fault: str, happened: str, lost: int, expected: Path, **options) -> Row:
    """Starts the run again and says how it ended."""
    code, out = lab.finish(run_dir, **options)
    if code:
        return Row(fault, f"{happened}; again: {last_line(out)}", str(lost), "not finished", False)
    same = same_run(run_dir, expected)
    return Row(fault, happened, str(lost), "yes" if same else "NO", same and lost <= EVERY)


# --- the faults


def kills(lab: Lab, expected: Path, seconds: float, moments: int) -> Iterator[Row]:
    """kill -9 at random moments, up to `CHAIN` times in the same run; every third run begins with nothing prepared, so
    that it meets that too, and every third kill waits for a save."""
    number = run = 0
    while number < moments:
        run_dir, data = lab.folder / f"kill-{run}", lab.folder / f"data-{run}"
        own_data = run % 3 == 0
        fields = lab.fields(**({"data.dir": data} if own_data else {}))
        done: list[tuple[str, str, int]] = []
        finished = False
        while len(done) < CHAIN and number < moments and not finished:
            left = saves_begun(run_dir)
            saving = lambda run=run_dir, left=left: bool(saves_begun(run) - left)  # noqa: E731
            process = lab.start(run_dir, *fields)
            if number % 3 == 2:  # as soon as a save has begun, at a random one
                after = lab.draw.randrange(STEPS // EVERY) * EVERY
                reached = lambda after=after, run=run_dir: saved_step(run) >= after  # noqa: E731
                wait_for(process, lambda reached=reached, saving=saving: reached() and saving())
            else:
                then = time.monotonic() + lab.draw.uniform(0, seconds)
                wait_for(process, lambda then=then: time.monotonic() > then)
            finished = process.poll() is not None
            going_on = saved_step(run_dir) > 0
            where = (
                "after its end" if finished
                else "in a save" if saving()
                else f"after step {step_of(run_dir)}" if step_of(run_dir) and not going_on
                else "in a run that went on" if going_on
                else "before the first step" if not own_data or any(data.glob("tokens/*/manifest"))
                else "while data was prepared"
            )  # fmt: skip
            process.kill()
            process.communicate()
            saved = saved_step(run_dir)
            lost = 0 if finished else max(0, step_of(run_dir) - saved)
            done.append((f"kill -9 {where}", f"goes on after step {saved}", lost))
            number += 1
        run += 1
        code, out = lab.finish(run_dir, *fields)
        same = not code and same_run(run_dir, expected)
        for fault, happened, lost in done:
            said = happened if not code else f"{happened}; again: {last_line(out)}"
            yield Row(fault, said, str(lost), "yes" if same else "NO", same and lost <= EVERY)


def saves_begun(run_dir: Path) -> set[tuple[str, int]]:
    """Saves that are under way, or were when a process was killed, each told from every other."""
    found = set()
    for path in (run_dir / "checkpoints").glob(".*.saving"):
        with contextlib.suppress(OSError):  # finished meanwhile
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def terminations(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    run_dir = lab.stopped("sigterm")
    saved = saved_step(run_dir)
    yield again(
        lab, run_dir, "SIGTERM in a step", f"saved after step {saved}", step_of(run_dir) - saved, expected
    )


def damages(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    """Every kind of file, cut short or with one bit turned."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)

    def largest(folder: Path, pattern: str) -> Path:
        return max((p for p in folder.rglob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)

    files = {
        "the newest checkpoint": lambda run: largest(
            sorted((run / "checkpoints").glob("[0-9]*"))[-1] / "state", "*"
        ),
        "its manifest": lambda run: sorted((run / "checkpoints").glob("[0-9]*"))[-1] / "manifest.json",
        "metrics.jsonl": lambda run: run / "metrics.jsonl",
        "tokenizer.model": lambda run: run / "tokenizer.model",
        "the token cache": lambda run: largest(run.parent / "data", "train.tokens"),
        "config.json": lambda run: run / "config.json",
    }
    for what, find in files.items():
        for how, damage in (("cut short", cut), ("one bit flipped", flip)):
            run_dir = lab.stopped(f"damage-{what.replace(' ', '-')}-{how[:3]}")
            damage(find(run_dir))
            before = step_of(run_dir)
            code, out = lab.finish(run_dir)
            fault = f"{what} {how}"
            if code:
                line = last_line(out)
                refused = line.startswith("error:") and "Traceback" not in out
                yield Row(fault, f"refused: {line.removeprefix('error: ')}", "-", "-", refused)
                continue
            going = next((line for line in out.splitlines() if "resuming after step" in line), "")
            start = int(going.rpartition("step ")[2] or 0)
            same = same_run(run_dir, expected)
            happened = next(
                (line for line in out.splitlines() if "damaged" in line), "made anew or not needed"
            )
            lost = max(0, before - start)
            yield Row(fault, happened[:120], str(lost), "yes" if same else "NO", same)


def full_disks(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    disk = lab.folder / "disk"
    disk.mkdir()
    for where, size in (("while data is prepared", 16), ("in a save", 900)):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield Row(f"disk full {where}", "not tried: needs the right to mount", "-", "-", True)
            return
        try:
            fields = {"data.dir": disk / "data"} if size < 100 else {}
            run_dir = lab.folder / "full-data" if size < 100 else disk / "run"
            code, out = lab.finish(run_dir, *lab.fields(**fields))
            saved, reached = saved_step(run_dir), step_of(run_dir)
            line = last_line(out)
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            if code != 1 or "Traceback" in out:
                yield Row(f"disk full {where}", f"exit code {code}: {line}", "-", "-", False)
            else:
                yield again(lab, run_dir, f"disk full {where}", line, reached - saved, expected)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def read_only(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    disk = lab.folder / "read-only"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield Row("read-only directory", "not tried: needs the right to mount", "-", "-", True)
        return
    try:
        code, out = lab.finish(disk / "run")
        yield Row("read-only directory", last_line(out), "0", "-", code == 1 and "Traceback" not in out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def two_writers(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    run_dir = lab.folder / "two"
    first = lab.start(run_dir, *lab.fields())
    wait_for(first, lambda: (run_dir / "config.json").exists())
    code, out = lab.finish(run_dir)
    first.communicate(timeout=TIMEOUT)
    good = code == 1 and first.returncode == 0 and same_run(run_dir, expected)
    yield Row("two writers", f"the second: {last_line(out)}", "0", "yes" if good else "NO", good)


def dying_processes(lab: Lab, *_: object) -> Iterator[Row]:
    launcher = (sys.executable, "-m", "zerotollm.sharding.local_launcher", "--processes", "2", "--")
    alone, run_dir = lab.folder / "both", lab.folder / "one-dies"
    code, out = lab.finish(alone, *lab.fields(), launcher=launcher)
    if code:
        yield Row(
            "one of two processes dies", f"two processes do not run here: {last_line(out)}", "-", "-", False
        )
        return
    process = lab.start(run_dir, *lab.fields(), launcher=launcher)
    wait_for(process, lambda: step_of(run_dir) > STEPS // 2)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    lost = step_of(run_dir) - saved_step(run_dir)
    row = again(
        lab,
        run_dir,
        "one of two processes dies",
        f"both end, exit code {process.returncode}",
        lost,
        alone,
        launcher=launcher,
    )
    yield row if process.returncode else Row(row.fault, "exit code 0", row.lost, row.same, False)


def not_a_number(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    """A gradient that is NaN at step 25, put in where the step is made."""
    patch = lab.folder / "nan-patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import jax\nold = jax.value_and_grad\n"
        "def broken(f, **k):\n"
        "    def g(params):\n"
        "        out, grad = old(f, **k)(params)\n"
        "        return out, jax.tree.map(lambda x: x * float('nan'), grad)\n"
        "    return g\n"
        "jax.value_and_grad = broken\n"
    )
    run_dir = lab.stopped("nan")
    shutil.rmtree(patch / "__pycache__", ignore_errors=True)
    saved = saved_step(run_dir)
    code, out = lab.finish(run_dir, env={"PYTHONPATH": str(patch)})
    line = last_line(out)
    if code != 1 or "Traceback" in out:
        yield Row("NaN in a gradient", f"exit code {code}: {line}", "-", "-", False)
        return
    yield again(
        lab, run_dir, "NaN in a gradient", line.removeprefix("error: "), step_of(run_dir) - saved, expected
    )


def little_memory(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    """ulimit, of a run that goes on and of one that begins with nothing prepared."""
    for option, megabytes in (("d", 100), ("d", 400), ("d", 700), ("v", 1000)):
        for prepared in (True, False):
            name = f"memory-{option}-{megabytes}-{prepared}"
            run_dir = lab.stopped(name) if prepared else lab.folder / name
            fields = lab.fields(**({} if prepared else {"data.dir": lab.folder / f"data-{name}"}))
            limited = ("sh", "-c", f'ulimit -{option} {megabytes * 1024}; exec "$@"', "sh")
            begun = time.monotonic()
            code, out = lab.finish(run_dir, *fields, launcher=limited)
            seconds = time.monotonic() - begun
            fault = f"`ulimit -{option} {megabytes * 1024}`, {'going on' if prepared else 'nothing prepared'}"
            happened = f"{last_line(out)} ({seconds:.1f} s)" if code else "suffices"
            lost = step_of(run_dir) - saved_step(run_dir) if code else 0
            row = again(lab, run_dir, fault, happened, lost, expected)
            yield row if code in (0, 1) and "Traceback" not in out else replace(row, good=False)


def clock_back(lab: Lab, expected: Path, *_: object) -> Iterator[Row]:
    patch = lab.folder / "clock-patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import time\nold = time.time\ncalls = 0\n"
        "def jumping():\n    global calls\n    calls += 1\n    return old() - 86400 * (calls > 30)\n"
        "time.time = jumping\n"
    )
    run_dir = lab.folder / "clock-back"
    code, out = lab.finish(run_dir, env={"PYTHONPATH": str(patch)})
    same = code == 0 and same_run(run_dir, expected)
    yield Row(
        "clock jumps back a day",
        "nothing" if not code else last_line(out),
        "0",
        "yes" if same else "NO",
        same,
    )


def exports(lab: Lab, expected: Path, seconds: float, moments: int) -> Iterator[Row]:
    whole, killed = lab.folder / "exported", lab.folder / "exported-killed"
    words = ("export", "--out")
    code, out = lab.finish(expected, *words, str(whole))
    if code:
        yield Row("kill -9 in export", f"export does not work: {last_line(out)}", "-", "-", False)
        return
    process = lab.start(expected, *words, str(killed))
    wait_for(process, lambda: any(killed.parent.glob("*exported-killed*")))
    process.kill()
    process.communicate()
    left = "a whole folder" if killed.exists() else "no folder"
    if killed.exists():
        code, out = 0, ""
    else:
        code, out = lab.finish(expected, *words, str(killed))
    files = sorted(p.name for p in whole.iterdir())
    same = not code and all((whole / n).read_bytes() == (killed / n).read_bytes() for n in files)
    yield Row("kill -9 in export", f"left {left}", "0", "yes" if same else f"NO {last_line(out)}", same)


GROUPS = {
    "kill": kills,
    "sigterm": terminations,
    "artifact": damages,
    "disk": full_disks,
    "read-only": read_only,
    "writers": two_writers,
    "processes": dying_processes,
    "nan": not_a_number,
    "memory": little_memory,
    "clock": clock_back,
    "export": exports,
}


def table(rows: list[Row], command: str) -> str:
    lines = [
        f"`{command}`: {sum(row.good for row in rows)} of {len(rows)} as they should be.",
        "",
        "| fault | what happened | steps lost | same bits in the end |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.fault, row.happened, row.lost, row.same)
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return re.sub(r"/\S*/faults-\w+/", "", "\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="kills at random moments")
    parser.add_argument("--into", type=Path, help=f"Markdown file: what stands between {MARKS} is replaced")
    parser.add_argument("--only", default="", help=f"groups, with commas: {', '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    groups = chosen.only.split(",") if chosen.only else list(GROUPS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        lab = Lab(Path(name), random.Random(chosen.seed))
        write_text(lab)
        expected = lab.folder / "undisturbed"
        code, out = lab.finish(expected)
        if code:
            sys.stderr.write(out)
            return 1
        begun = time.monotonic()
        lab.finish(lab.folder / "timed")
        seconds = time.monotonic() - begun
        started = time.monotonic()
        for group in groups:
            for row in GROUPS[group](lab, expected, seconds, chosen.moments):
                rows.append(row)
                judged, seconds_so_far = "ok " if row.good else "BAD", time.monotonic() - started
                said = f"{row.fault}: {row.happened}; {row.lost}; {row.same}"
                sys.stdout.write(f"{seconds_so_far:5.0f} s {judged} {said}\n")
                sys.stdout.flush()
    text = table(rows, " ".join(["python -m tests.faults", *sys.argv[1:]]))
    if chosen.into:
        before, begin, rest = chosen.into.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        chosen.into.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    sys.stdout.write(text + "\n")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
