"""Which systems have wheels of the requirements: `python -m tests.platforms --into docs/reference/platforms.md`.

`uv pip compile` resolves each requirements file for each system and Python version. It evaluates environment markers
for that system, which pip does not. Nothing is installed. Needs a network and uv (`pip install uv`).
"""

import argparse
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from zerotollm.host.atomic_files import write_atomically
from zerotollm.studies.markdown_page import read_page, with_table

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "Linux x86-64": "x86_64-unknown-linux-gnu",
    "Linux arm64": "aarch64-unknown-linux-gnu",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}
FILES = ("", "-test", "-torch", "-hf", "-docs", "-cuda12", "-cuda13")
"""requirements*.txt; each after the first is resolved together with the first, except `-docs`, which stands alone."""
SOURCES = ("promise", "rouge-score", "sqlitedict", "word2number")
"""Packages of pure Python that the index has as source only: pip makes a wheel of them on any system."""


@lru_cache
def missing(file: str, platform: str, python: str) -> tuple[str, list[str]]:
    """Return why a requirements file cannot be resolved ("" if it can), and its packages with versions."""
    names = [
        f"requirements{name}.txt" for name in {"-docs": ("-docs",)}.get(file, ("", file) if file else ("",))
    ]
    sources = [word for package in SOURCES for word in ("--no-binary", package)]
    command = [
        "uv",
        "pip",
        "compile",
        "-q",
        "--no-header",
        "--no-annotate",
        "--only-binary",
        ":all:",
        *sources,
    ]
    command += ["--python-platform", PLATFORMS[platform], "--python-version", python, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return "", done.stdout.split()
    lines = [line.strip() for line in done.stderr.splitlines()]
    reason = next((line for line in lines if line.startswith("cause: ")), " ".join(lines))
    package = re.search(r"([\w.-]+)(?:\[[^]]*\])?(?:[<>=!~]+\S+)? ha(?:s|ve) no (?:usable )?wheels", reason)
    return (f"no wheel of {package[1]}" if package else reason.removeprefix("cause: ")[:160]), []


def cell(file: str, platform: str) -> str:
    """Return what a table says about a requirements file on a system."""
    reasons = {python: missing(file, platform, python)[0] for python in PYTHONS}
    if len(set(reasons.values())) == 1:
        return reasons[PYTHONS[0]] or "yes"
    return "; ".join(f"{python}: {reason or 'yes'}" for python, reason in reasons.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """Return a table of the versions that are chosen, by Python version, where they differ between systems."""
    named = (
        "jax",
        "flax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
        "sentencepiece",
        "tokenizers",
        "array-record",
    )
    rows = []
    for platform in PLATFORMS:
        for python in PYTHONS:
            _, pinned = missing("", platform, python)
            chosen = dict(pin.split("==") for pin in pinned if "==" in pin)
            rows.append([platform, python, str(len(chosen)), *(chosen.get(name, "-") for name in named)])
    return table(["system", "Python", "packages", *named], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, required=True, help="page with the places for both tables")
    page = parser.parse_args().into
    uv = subprocess.run(["uv", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    rows = [[f"`requirements{file}.txt`", *(cell(file, name) for name in PLATFORMS)] for file in FILES]
    when = f"Resolved on {datetime.now(UTC):%Y-%m-%d} with uv {uv}, for Python {', '.join(PYTHONS)}."
    wheels = f"{table(['file', *PLATFORMS], rows)}\n\n{when}"
    text = with_table(read_page(page), "wheels", wheels, page)
    write_atomically(page, with_table(text, "versions", versions(), page))


if __name__ == "__main__":
    main()
