"""The README is short, it and the pages name what exists, and their tables come from the kept runs."""

import json
import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import doc_pages
from tests.mutants import EQUIVALENT, NEAREST
from zerotollm import catalog, cli
from zerotollm.actions.config import PlanOptions
from zerotollm.experiment import Experiment
from zerotollm.session.devices import check_rows
from zerotollm.sharding.config import parse_mesh
from zerotollm.studies.ladder import as_point
from zerotollm.studies.results import page_markdown, rows_of
from zerotollm.studies.scaling_law import fit_law, predict
from zerotollm.studies.suite import BASE
from zerotollm.studies.table import markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = {page.stem: page.read_text(encoding="utf-8") for page in ROOT.glob("docs/results/*.md")}
PAGES = [
    *(ROOT / name for name in ("README.md", "NOTES.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
KEPT = sorted(path.parent for path in ROOT.glob("results/*/*/table.json"))


def test_the_readme_is_a_front_door():
    """Its first screen has the two commands that `.ci/run` runs in a fresh environment."""
    lines = README.splitlines()
    assert len(lines) <= 150
    for file, command in (
        ("requirements.txt", "python launch.py --experiment base"),
        ("requirements-dev.txt", "python -m pytest"),
    ):
        assert any(line.startswith(f"pip install -r {file} && {command} ") for line in lines[:15])
        assert re.search(rf"^{re.escape(command)}( |$)", CI, re.MULTILINE)
    assert "pip install -q -r requirements-dev.txt" in CI
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_every_box_of_the_paper_is_a_function():
    table = (ROOT / "docs/explanation/paper.md").read_text(encoding="utf-8")
    names = re.findall(r"`(zerotollm(?:\.\w+)+)`", table)
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(import_module(module), attribute)), name


def shown_experiment(text: str) -> str | None:
    """Return the name of the experiment whose file a page shows, if it shows one."""
    code = "\n".join(block.code for block in doc_pages.python(text))
    found = re.search(r'\bname"?\s*[=:]\s*"(\w+)"', code)
    return found[1] if found and "def experiment()" in code else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"(?<![\w/])(?:zerotollm|tests|experiments|docs|results)/[\w./-]*\w", text))
    modules = re.findall(r"-m ((?:zerotollm|tests)[\w.]*)", text)
    paths |= {f"{module.replace('.', '/')}.py" for module in modules}
    paths -= {f"experiments/{shown_experiment(text)}.py", "experiments/NAME.py"}
    missing = [p for p in sorted(paths) if not ((ROOT / p).exists() or (page.parent / p).exists())]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_understood(page, monkeypatch, tmp_path):
    """Each command is parsed, its fields are set and validated, and its action, here one that returns, is called.

    A mesh that it names divides its batch. A page whose Python defines `experiment()` shows a file of experiments/,
    which its commands may name.
    """
    experiments, called = ROOT / "experiments", []

    def stub(name):
        if name == "zerotollm.data.sources.parallel":  # the reader's own pairs
            return SimpleNamespace(target_bytes=lambda data: 2_000_000)
        if not name.startswith("zerotollm.actions."):
            return import_module(name)
        return SimpleNamespace(**{name.rpartition(".")[2]: act})

    def act(subject, _, *options):
        called.append(subject)
        if isinstance(subject, Experiment):
            plans = [option.mesh for option in options if isinstance(option, PlanOptions)]
            for mesh in filter(None, [subject.train.mesh, *plans]):
                check_rows(subject, parse_mesh(mesh))

    base, multi30k = (catalog.load(experiments, name) for name in ("base", "multi30k"))
    # Its files are named in the command that trains it.
    named = replace(multi30k.data, corpus="a.en:a.de", validation="b.en:b.de", test="c.en:c.de")

    def as_trained(path, overrides, training):
        return cli.override(replace(multi30k, data=named) if path.name == "multi30k" else base, overrides)

    monkeypatch.setattr(cli, "import_module", stub)
    monkeypatch.setattr(cli, "read_experiment", lambda path: base)
    monkeypatch.setattr(cli, "as_trained", as_trained)
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shell = [block.code for block in doc_pages.blocks(text) if block.language in ("", "bash")]
    if "results" not in page.parts:  # whose numbers may be of experiments of an earlier version
        inline = re.findall(r"`(python launch\.py [^`]+)`", doc_pages.FENCE.sub("", text))
        shell += [command.replace("\n", " ") for command in inline if "NAME" not in command]
    commands = re.findall(r"^(?:.*python launch\.py|zerotollm) (.*)", "\n".join(shell), re.MULTILINE)
    words = [shlex.split(command, comments=True) for command in commands if command]
    own = tmp_path / "experiments"
    own.mkdir()
    if name := shown_experiment(text):
        code = "\n".join(block.code for block in doc_pages.python(text))
        (own / f"{name}.py").write_text(code, encoding="utf-8")
    folders = [own, experiments]
    known = catalog.names(own) + catalog.names(experiments)
    parsed = [cli.split(command, known) for command in words]
    acting = [replace(command, distributed="") for command in parsed if not command.only_shows()]
    for command in acting:
        cli.run(command, folders)
    assert len(called) == len(acting)
    assert page.name != "README.md" or len(acting) > 5


def test_every_file_whose_bugs_are_planted_exists_with_its_test():
    named = {f"zerotollm/{file}.py" for file in NEAREST} | {f"tests/{test}" for test in NEAREST.values()}
    named |= {f"zerotollm/{name.partition(':')[0]}.py" for name in EQUIVALENT}
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def test_the_map_has_every_folder():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("zerotollm/*/*.py")}
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    rows = text.partition("| in reading order |")[2].partition("\n\n")[0]
    assert not [folder for folder in folders - {"zerotollm/data"} if f"`{folder}/`" not in rows]
    drawn = (ROOT / "docs/explanation/figures/layers.svg").read_text(encoding="utf-8")
    assert not [folder for folder in folders if f">{folder.split('/')[1]}/<" not in drawn]


def test_the_table_of_questions_has_its_place():
    assert "<!-- table questions -->" in RESULTS["base"]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_kept_tables_come_from_kept_runs(folder):
    rows = rows_of(folder)
    page = {"finetune": "finetuning", "vaswani": "translation"}.get(folder.parent.name, folder.parent.name)
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown(rows)
    assert f"<!-- table {folder.name} -->\n{page_markdown(rows)}\n<!-- end -->" in RESULTS[page]
    alone = folder.name.endswith("-untrained")  # stands beside the table of another suite
    assert len(rows) > (20 if folder.parent.name == "ablations" else 1) or alone
    seeds = {row["variant"]: row["shared"]["trained"] for row in rows}
    assert seeds[BASE] >= 3
    if rows[0]["published"] is None:  # a paper's rows are dear, and claim no difference by one seed
        assert set(seeds.values()) == {seeds[BASE]}
    else:
        assert min(seeds.values()) >= 1


def test_the_kept_law_comes_from_the_kept_ladder_and_is_what_its_page_says():
    folder = ROOT / "results/scaling"
    points = [as_point(json.loads(path.read_text())) for path in folder.glob("points/*.json")]
    *ladder, larger = sorted(points, key=lambda point: point.parameters * point.tokens)
    law = json.loads((folder / "law.json").read_text())
    fit = fit_law(ladder)
    for name, constant in law["constants"].items():
        assert getattr(fit.law, name) == pytest.approx(constant["value"], rel=0.01), name
    predicted = predict(fit, larger.parameters, larger.tokens)
    assert predicted.value == pytest.approx(law["prediction"]["bpb"], abs=1e-4)
    assert larger.bpb == law["prediction"]["measured"]
    for number in (law["prediction"]["bpb"], larger.bpb, *law["prediction"]["interval"]):
        assert f"{number:.4f}" in RESULTS["scaling"]
