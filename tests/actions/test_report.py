"""report: a page that is whole, says what is missing, and cannot be broken by the text it shows."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.browser import WAIT_MS, chromium
from zerotollm.actions.config import ReportOptions
from zerotollm.actions.report import report
from zerotollm.cli import split
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.explain.figures.marks import Axis, Bars, Cloud, Dots, Heat, Line, Panel
from zerotollm.explain.figures.picture import Picture
from zerotollm.explain.render.page import Explorer, Figure, Program, Report, Section, Texts, render, tree
from zerotollm.explain.render.questions import QUESTIONS
from zerotollm.explain.render.tables import Table

HOSTILE = "heaven </script><img/src=x/onerror=alert(1)> &lt;b&gt; {x} $y$ @ramp"


class Page(HTMLParser):
    """Tags, attributes and scripts of a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.words = Counter(), [], [], []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = self._script and tag != "script"

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def text():
    """A page with every kind of block and mark, all of them with a text that would break it."""
    h, two = HOSTILE, (HOSTILE, HOSTILE)
    x, z = [0, 1], np.array([[0.1, 0.9], [0.5, 0.2]])
    marks = (
        (Line(x, x, h, low=x, high=x, hover=two),),
        (Dots(x, x, h, low=x, high=x, hover=two, text=two), Dots(x, x, "other", text=two, across=True)),
        (Bars(x, x, h, hover=two, text=two, low=x, high=x), Bars(x, x, h, across=True)),
        (Heat(z, h, (two, two), text=(two, two)),),
        (Cloud(np.eye(3), h, 0, (*two, h)),),
    )
    names = Axis(h, names=two)
    panels = tuple(Panel(f"{h} {i}", mark, names, names) for i, mark in enumerate(marks))
    maps = tuple(
        Panel(h, (Heat(z, h, hover_template="{y} takes {z} from {x}"),), names, names, choice=h) for _ in x
    )
    blocks = (
        Figure(Picture(h, (*panels, *maps), h)),
        Table((h, ">number"), ((h, "1"),), h),
        Table((h,), ((h,),), h, folded=True),
        Texts(h, ((h, two, "</script>"),)),
        Explorer(two, two, np.ones((2, 2, 2)) / 2, (two, two), z),
        tree(h, {h: {h: np.zeros((2, 3))}}),
        Program(h, f"<p title='{h}'>{h}</p>"),
    )
    return render(
        Report(h, h, ((h, h),), (Section("first", h, h, (h, "left out: no checkpoints <b>"), blocks),))
    )


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_text_is_never_markup(page):
    assert page.tags["script"] == 3
    assert page.tags["img"] == 0
    assert not any(name.startswith("on") for name, _ in page.attributes)
    said = "".join(page.words)
    assert HOSTILE in said
    assert "left out: no checkpoints <b>" in said


def test_plotly_gets_no_markup_of_the_text(page):
    """Tags in its labels are plotly's own, and only those that we put there."""
    labels = []

    def walk(value, key=""):
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, str) and key != "hovertemplate":
            labels.append(value)

    walk(json.loads(page.scripts[0])["figures"])
    assert any("&lt;" in label for label in labels)
    assert not [label for label in labels if re.search(r"<(?!br>)", label)]


def test_the_page_is_whole_without_a_network(page, text):
    data = json.loads(page.scripts[0])
    used = {
        int(value) for name, value in page.attributes if name in ("data-figure", "value") and value.isdigit()
    }
    assert used == set(range(len(data["figures"])))
    assert len(data["figures"]) == 7
    assert all(figure["data"] for figure in data["figures"])
    targets = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in targets)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in targets if value.startswith("#")} <= set(ids)
    assert len(text.encode()) < 12e6
    explorer = data["explorers"][0]
    assert len(explorer["next"]) == len(explorer["pieces"])


def test_parameters_are_a_tree():
    params = {"layer_0": {"up": np.zeros((2, 3)), "norm": np.zeros(3)}, "embedding": np.zeros((4, 2))}
    root = tree("params", params)
    assert root.size == 17
    assert {child.name: child.shape for child in root.children} == {"layer_0": "", "embedding": "4 x 2"}


def test_other_runs_may_be_named_with_with():
    command = split(["--experiment", "base", "report", "--with", "runs/a", "runs/b", "--text", "a text"])
    assert command.options == (("beside", "runs/a runs/b"), ("text", "a text"))


def test_another_run_that_is_none_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no run directory"):
        report(Experiment(), tmp_path, ReportOptions(beside="nowhere"))


@pytest.fixture(scope="module")
def report_file(run, run_dir, tmp_path_factory):
    copy = tmp_path_factory.mktemp("report") / "copy"
    shutil.copytree(run_dir, copy)
    pairs = copy.parent / "pairs"
    pairs.mkdir()
    for name in ("order", HOSTILE.replace("/", "")):
        lines = [
            json.dumps({"good": f"earth {word}", "bad": f"{word} earth"}) for word in ("and", "were", "made")
        ]
        (pairs / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return report(run.experiment, copy, ReportOptions(text=HOSTILE, beside=str(run_dir), judge=str(pairs)))


@pytest.mark.slow
def test_the_action_writes_all_of_it(report_file):
    page = Page(report_file.read_text(encoding="utf-8"))
    said = "".join(page.words)
    for part in (
        "Try it here", "How did training go?", "used in the same sentence?", "What did it learn, when?", "other runs?",
        "after step 4", "no interval", "Configuration", "Environment", "token by token", "GFLOP/s",
        "of 2 phenomena are shown to be learned", "that are in the training text", "windows each)",
        QUESTIONS[0].lesson, QUESTIONS[-1].figures,
    ):  # fmt: skip
        assert part in said, part
    assert page.tags["img"] == 0
    assert page.tags["script"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["light", "dark", "phone"])
def test_a_browser_draws_every_figure_without_a_complaint(report_file, mode):
    phone = {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True}
    complaints = []
    with chromium() as browser:
        scheme = "dark" if mode == "dark" else "light"
        context = browser.new_context(color_scheme=scheme, offline=True, **(phone if mode == "phone" else {}))
        context.set_default_timeout(WAIT_MS)
        tab = context.new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.goto(report_file.as_uri())
        plots = tab.locator(".plot")
        assert plots.count() > 20
        for i in range(plots.count()):
            plot = plots.nth(i)
            plot.scroll_into_view_if_needed()
            tab.wait_for_function("e => e.dataset.drawn !== undefined", arg=plot.element_handle())
            marks = plot.locator(".scatterlayer path, .barlayer path, .heatmaplayer image, canvas").count()
            assert marks > 0, plot.get_attribute("aria-label")
        assert not tab.evaluate("document.documentElement.scrollWidth > innerWidth")

        # By keys alone: a token to the left looks elsewhere, another head may be chosen, a map turns.
        shown = tab.locator(".two")
        before = shown.inner_text()
        tab.locator('.tokens button[aria-selected="true"]').focus()
        tab.keyboard.press("ArrowLeft")
        assert shown.inner_text() != before
        tab.locator(".explorer select").select_option(index=1)
        space = tab.locator(".plot:has(canvas)").first
        eye = "_fullLayout.scene.camera.eye.x"
        x = space.evaluate(f"e => e.{eye}")
        space.focus()
        tab.keyboard.press("ArrowLeft")
        tab.wait_for_function(f"([e, x]) => e.{eye} !== x", arg=[space.element_handle(), x])
        tab.locator(".numbers summary").first.click()
        tab.wait_for_selector(".numbers table tr")
        chosen = tab.locator("figure:has(select)").first
        chosen.locator("select").select_option(index=1)
        number = chosen.locator("select").input_value()
        tab.wait_for_function(
            "([e, n]) => e.dataset.drawn === n", arg=[chosen.locator(".plot").element_handle(), number]
        )

        # The model itself runs in the report.
        model = tab.frame_locator(".program")
        model.get_by_role("button", name="Write", exact=True).click()
        model.locator("#status", has_text="tokens/s").wait_for()
    assert not complaints
