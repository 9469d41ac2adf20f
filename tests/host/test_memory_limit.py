"""Too little host memory for native code is reported in one line before anything starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zerotollm.host import memory_limit

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are read as Linux counts them")


def limited(option: str, kilobytes: int, words: list[str]) -> subprocess.CompletedProcess:
    shell = ["sh", "-c", f'ulimit -{option} {kilobytes}; exec "$@"', "sh", *words]
    return subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("option", "dv")
def test_an_insufficient_limit_is_reported_in_one_line(option, tmp_path):
    (tmp_path / "text.txt").write_text("nothing is read of it")
    run_dir = tmp_path / "run"
    words = [f"--data.corpus={tmp_path / 'text.txt'}", f"--data.dir={tmp_path / 'data'}"]
    launch = [sys.executable, "launch.py", "--experiment", "base", "--run-dir", str(run_dir), *words]
    done = limited(option, 400_000, launch)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: host memory is limited to 410 MB \(ulimit -{option}\), and training .* run the same command again\n",
        done.stderr,
    ), done.stderr
    assert not (tmp_path / "data").exists()
    assert not (run_dir / "checkpoints").exists()


def test_the_memory_of_a_step_counts_too():
    code = (
        "from zerotollm.host.memory_limit import check_step, limits\n"
        "check_step(10**6)\n"
        "check_step(limits()[0].size - limits()[0].used)"
    )
    # Each core has threads, which take memory.
    kilobytes = 500_000 + 100_000 * len(os.sched_getaffinity(0))
    done = limited("d", kilobytes, [sys.executable, "-c", code])
    assert "line 3, in <module>" in done.stderr
    assert re.search(r"RunError: host memory is limited to .* a step of [\d,]+ MB takes about", done.stderr)


def test_without_a_limit_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory_limit, "limits", list)
    memory_limit.check_libraries()
    memory_limit.check_step(2**60)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_lack_of_memory_is_reported_in_one_line(error, capsys, monkeypatch):
    from zerotollm import cli

    def out_of_memory(*_):
        raise error

    monkeypatch.setattr(cli, "run", out_of_memory)
    assert cli.main([], ROOT / "experiments") == 1
    assert capsys.readouterr().err.startswith("error: out of host memory")


def test_another_error_is_not_hidden(monkeypatch):
    from zerotollm import cli

    def broken(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main([], ROOT / "experiments")
