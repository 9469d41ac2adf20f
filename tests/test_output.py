"""Output: texts are shown as written, on any terminal, and no run fails because its output is closed."""

import io
import json
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

import pytest
from rich.table import Table

from tests.test_launch_end_to_end import ROOT, TINY
from zerotollm.console import Console, Lines
from zerotollm.evaluation import label_report
from zerotollm.explain.figures.image import plain
from zerotollm.explain.figures.marks import Dots
from zerotollm.explain.figures.picture import Picture
from zerotollm.output import printable
from zerotollm.studies import figure

LAUNCH = f"{sys.executable} {ROOT / 'launch.py'}"


def test_standard_streams_that_were_closed_are_not_taken_by_files(tmp_path):
    """Otherwise the next file would get descriptor 1 or 2, and C code would log into it."""
    code = (
        "from zerotollm.output import protect_output; protect_output(); import os, sys\n"
        "file = open('x', 'w'); sys.stdin.read(); print('lost'); os.write(2, b'lost'); file.write(str(file.fileno()))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = shell(f"PYTHONPATH={ROOT} {sys.executable} {script} <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert int((tmp_path / "x").read_text()) > 2


def shell(line: str, folder: Path) -> subprocess.CompletedProcess:
    """Run `line` in bash, where LAUNCH is the command and a failure in a pipe counts."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("LAUNCH", LAUNCH)], cwd=folder, capture_output=True
    )


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("PYTHONIOENCODING=ascii LAUNCH --list", 0, b""),
        ("PYTHONIOENCODING=ascii LAUNCH base --data.corpus /nö.txt", 2, b"error: /n\\xf6.txt"),
        ("PYTHONIOENCODING=latin-1 LAUNCH base generate خانه --run-dir خانه", 2, b"\\u062e"),
        ("LAUNCH --list >&-", 0, b""),
        ("LAUNCH --list > /dev/full", 1, b"error: standard output: No space left on device"),
        ("LAUNCH bse > /dev/full 2> /dev/full", 2, b""),
        ("LAUNCH bse >&- 2>&-", 2, b""),
        ("LAUNCH bse <&- >&-", 2, b"unknown"),
    ],
)
def test_no_stream_causes_a_traceback(line, code, says, tmp_path):
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1 if says else 0), done.stderr.decode()
    assert says in done.stderr


@pytest.mark.parametrize("output", ["> /dev/full 2>&1", ">&- 2>&-", "2>&1 | head -n 1"])
def test_a_run_outlives_its_output(output, tmp_path):
    (tmp_path / "own.txt").write_text("خانه بزرگ و کتاب خوب است\n" * 200, encoding="utf-8")
    done = shell(
        f"PYTHONIOENCODING=ascii ZEROTOLLM_DATA={tmp_path} LAUNCH --experiment base --data.corpus own.txt "
        f"--data.documents paragraph --run-dir run {' '.join(TINY)} --train.steps 3 {output}",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "00000003").is_dir()


def test_a_terminal_that_is_closed_costs_no_steps(tmp_path):
    """SIGHUP is a request to stop; under nohup it stays ignored."""
    code = (
        "import os, signal\n"
        "from zerotollm.host.stop_signals import stop_requests\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests themselves may run under nohup
        "with stop_requests(hangup=True) as stop: os.kill(os.getpid(), signal.SIGHUP); print(stop)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stop_requests(hangup=True) as stop: os.kill(os.getpid(), signal.SIGHUP); print(stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\n[]\n"


WRITTEN = [
    "[spam] and [/quote], [bold]not bold[/bold]",
    "a :smile: in words",
    "a tab\tand \u200c joiners \u200d, \u00a0 no-break, \u3000 wide, \u00ad soft",
    "1e-4 'quoted' https://x.y",
    "\ue000 private, \U0001f469\u200d\U0001f467 family",
]


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("terminal", [False, True])
def test_text_is_shown_as_written(text, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    console.print(Lines(text), soft_wrap=True)
    assert out.getvalue() == text + "\n"
    table = Table(text, box=None)
    table.add_row(text)
    console.print(table, text)
    shown = out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert shown.count(text.rpartition("\t")[2]) == 4


def test_no_text_controls_the_terminal():
    dangerous = "\x1b[2J\x07\x08\r\x9b\x00\x7f"
    assert printable(dangerous + "\t\n") == "\ufffd[2J" + "\ufffd" * 6 + "\t\n"
    out = io.StringIO()
    table = Table(box=None)
    table.add_row(dangerous)
    Console(file=out, force_terminal=True).print(table, dangerous, Lines(dangerous))
    assert not any(c in out.getvalue() for c in "\x07\x08\r\x9b\x00\x7f")
    assert "\x1b[2J" not in out.getvalue()


HOSTILE = [
    r"$\frac{$",
    "a $b$ c",
    r"\$x$",
    "_hidden",
    "<b>bold</b> &lt;",
    "[/spam]",
    "2020-01-01",
    "7",
    "tab\there",
]


def test_matplotlib_draws_text_as_written():
    from matplotlib.text import Text

    for text in HOSTILE:
        shown, is_mathematics = Text(text=plain(text))._preprocess_math(plain(text))
        assert not is_mathematics
        assert shown.lstrip("\u200b") == text.expandtabs()
        assert not shown.startswith("_")


def test_figures_of_labels_show_them_as_they_are_written(tmp_path):
    count = len(HOSTILE)
    scores = {"confusion": [[1] * count] * count, "labels": HOSTILE}
    data, layout = drawn(label_report.picture(scores, HOSTILE[4]), tmp_path)
    for axis in (layout["xaxis"], layout["yaxis"]):
        assert [unescape(name) for name in axis["ticktext"]] == HOSTILE
        assert axis["type"] == "linear"  # names are labels of ticks: no number or date is read in them
        assert "<b>" not in axis["ticktext"][4]
    assert data[0]["text"] == [["1"] * count] * count
    assert escape(HOSTILE[4]) in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_figures_of_suites_show_names_as_they_are_written(tmp_path):
    shared = {
        "difference": 0.1,
        "low": 0.0,
        "high": 0.2,
        "verdict": "worse",
        "measure": "bits per byte",
        "margin": 0.002,
        "bleu": None,
        "pairs": 3,
    }
    rows = [
        {"group": g, "variant": v, "sentence": v, "paper": g, "shared": shared}
        for g, v in zip(HOSTILE, reversed(HOSTILE), strict=True)
    ]
    data, layout = drawn(figure.picture(rows), tmp_path)
    groups = [note["text"].removeprefix("<i>").removesuffix("</i>") for note in layout["annotations"]]
    assert sorted(map(unescape, groups)) == sorted(HOSTILE)
    assert sorted(map(unescape, layout["yaxis"]["ticktext"])) == sorted(HOSTILE)
    texts = [text for trace in data for text in (*trace.get("hovertext", ()), *trace.get("text", ()))]
    assert any("+0.1000 [+0.0000, +0.2000]" in text for text in texts)
    assert not any("<b>bold" in text for text in (*texts, *groups))


def test_a_suite_is_drawn_within_its_axes():
    """Variants far off become arrows at the edge, and every row keeps its numbers."""
    shared = {"verdict": "worse", "measure": "bits per byte", "margin": 0.002, "bleu": None, "pairs": 3}
    rows = [
        {"group": "g", "variant": f"v{i}", "sentence": "", "paper": ""}
        | {"shared": shared | {"difference": x, "low": x - 0.01, "high": x + 0.01}}
        for i, x in enumerate([-0.02, -0.01, 0.01, 0.02, 0.03, 9.0])
    ]
    (panel,) = figure.picture(rows).panels
    low, high = panel.x.span
    assert -low == high < 0.2
    dots = [mark for mark in panel.marks if isinstance(mark, Dots)]
    assert [(mark.symbol, len(mark.x)) for mark in dots] == [("circle", 5), ("right", 1), ("none", 6)]
    assert all(low <= x <= high for mark in dots for x in mark.x)
    assert "+9.0000 [+8.9900, +9.0100]" in dots[-1].text


def drawn(picture: Picture, folder: Path) -> tuple[list, dict]:
    """Return data and layout of the one figure on the page of a picture, which is also saved as an image."""
    assert picture.save(folder / "x.png").read_bytes().startswith(b"\x89PNG")
    page = picture.save(folder / "x.html").read_text(encoding="utf-8")
    figure, _ = json.JSONDecoder().raw_decode(page.rpartition("{const f = ")[2])
    return figure["data"], figure["layout"]
