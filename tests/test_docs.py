"""The pages of docs/: their Python and cheap commands run, their links lead somewhere, nothing generated is old.

Every block of Python runs on tiny models in the place of runs/base and runs/translate. How commands are treated is said
in docs/how-to/documentation.md.
"""

import codeop
import json
import random
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.base import experiment as base
from tests import doc_pages, doc_reference
from zerotollm.actions.train import train
from zerotollm.cli import main
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.experiment import Experiment
from zerotollm.explain.render.questions import QUESTIONS
from zerotollm.training.config import OptimizerConfig, TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WITH_PYTHON = [
    page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8") and page.parent != ROOT
]
CHEAP = ("generate", "evaluate", "explain")
"""Actions that run on the tiny model, if the command has no option but the action's own."""
WORDS = re.findall(
    r"\w+",
    "the and of in to he was God said king man house earth heaven light three two seven son queen Israel "
    "beginning created heavens went came made people day water city Moses mountain robot garden "
    "quick brown fox jumps over lazy dog unbelievable",
)
"""of the texts that the tiny models are trained on"""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(draw: random.Random, words: int) -> str:
    """Return sentences of words that become rarer in the order of `WORDS`."""
    chosen = draw.choices(WORDS, [1 / (1 + n) for n in range(len(WORDS))], k=words)
    return " ".join(f"{word}." if n % 9 == 8 else word for n, word in enumerate(chosen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with results/ and with tiny runs of the names that the pages load."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "results").symlink_to(ROOT / "results")
    draw = random.Random(0)
    (folder / "text.txt").write_text("\n\n".join(text_of(draw, 120) for _ in range(60)), encoding="utf-8")
    verses = [text_of(draw, draw.randint(2, 8)) for _ in range(200)]
    (folder / "old.txt").write_text("\n".join(verses).replace("e", "ee"), encoding="utf-8")
    (folder / "new.txt").write_text("\n".join(verses), encoding="utf-8")
    (folder / "my_notes").mkdir()
    for number in range(4):
        (folder / "my_notes" / f"{number}.md").write_text("\n".join(verses[number::4]), encoding="utf-8")
    pair = {"good": "the king came.", "bad": "the king come."}
    (folder / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 8, encoding="utf-8")
    tiny = Experiment(
        name="base",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=128, batch_size=4),
        tokenizer=TokenizerConfig(vocab_size=420),
        model=replace(base().model, num_layers=1, width=48, num_heads=3),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=0.01),  # compiled sooner than muon
        train=TrainConfig(steps=20, eval_every=10, checkpoint_every=10, sample_every=0),
    )
    pairs = f"{folder / 'old.txt'}:{folder / 'new.txt'}"
    translate = replace(
        tiny,
        name="translate",
        data=replace(tiny.data, corpus=pairs, context=48, validation_fraction=0.1),
        model=replace(tiny.model, architecture="encoder-decoder", width=24, cross_rope=True),
        train=replace(tiny.train, steps=4, eval_every=4, checkpoint_every=4),
    )
    for experiment in (tiny, translate):
        train(experiment, folder / "runs" / experiment.name)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page, folder):
    outputs = doc_pages.run_page(page, folder)
    text = page.read_text(encoding="utf-8")
    assert len(outputs) == len(doc_pages.python(text))
    printing = doc_pages.with_outputs(text, outputs)
    assert "```text\n```" not in printing, "a block of output has nothing before it that prints"
    for image in re.findall(r"\]\((figures/\d\w*\.png)\)", text):
        assert (folder / Path(image).name).stat().st_size > 1000, image


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page.parent.name == "learn"], ids=name_of)
def test_blocks_can_be_pasted_into_a_python_shell(page):
    """There an empty line ends an indented block, and nothing else does."""
    for block in doc_pages.python(page.read_text(encoding="utf-8")):
        pasted: list[str] = []
        for line in [*block.code.splitlines(), ""]:
            pasted.append(line)
            if codeop.compile_command("\n".join(pasted), symbol="single"):
                pasted = []
        assert not pasted or not any(pasted), block.code


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/**/*.ipynb")), ids=name_of)
def test_a_notebook_runs_and_holds_no_outputs(notebook, folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the notebook adds its folder
    page = folder / f"{notebook.stem}.md"
    page.write_text(doc_pages.notebook_page(notebook), encoding="utf-8")
    assert len(doc_pages.run_page(page, folder)) > 5
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]


def cheap_commands() -> list[str]:
    """Return the commands of all pages that read a finished run of `base` with nothing changed."""
    found = []
    for page in PAGES:
        for block in doc_pages.blocks(page.read_text(encoding="utf-8")):
            for line in block.code.replace("\\\n", " ").splitlines():
                if line.startswith("python launch.py --experiment base "):
                    words = shlex.split(line, comments=True)[2:]
                    if words[2] in CHEAP and not {"--into", "--whole-run", "--judge"} & set(words):
                        found.append(shlex.join(words))
    return sorted(set(found))


def test_cheap_commands_run(folder, capsys):
    commands = cheap_commands()
    assert len(commands) >= 3
    for command in commands:
        with doc_pages.inside(folder):
            assert main(shlex.split(command), experiments=ROOT / "experiments") == 0, command
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    assert not broken


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", doc_reference.PAGES)
def test_generated_pages_are_up_to_date(name):
    kept = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
    assert kept == doc_reference.PAGES[name](), "write it again: python -m tests.doc_reference"


def test_the_site_lists_every_page():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")
    )


def test_the_glossary_has_one_sentence_for_each_term():
    entries = (ROOT / "docs/reference/glossary.md").read_text(encoding="utf-8").split("\n## ")[1:]
    terms = [entry.partition("\n\n") for entry in entries]
    assert len(terms) >= 40
    assert [name for name, _, _ in terms] == sorted((name for name, _, _ in terms), key=str.lower)
    for name, _, sentence in terms:
        assert sentence.strip().endswith("."), name
        assert len(sentence.split()) < 30, name


def test_every_chapter_has_its_parts():
    chapters = sorted(ROOT.glob("docs/learn/[0-9]*.md"))
    assert len(chapters) == 10
    for chapter in chapters:
        text = chapter.read_text(encoding="utf-8")
        parts = (
            "> *",
            "$$",
            "## The idea",
            "## A figure",
            "## What your model says",
            "## Exercises",
            "<details",
        )
        parts += ("## Where it is in the code", "**1.**", "**2.**", "**3.**")
        assert not [part for part in parts if part not in text], chapter.name


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_a_chapter_says_what_the_report_says_about_a_question(question):
    """One source: the lesson stands in `zerotollm.explain.render.questions`, and word for word in a chapter."""
    chapters = [path.read_text(encoding="utf-8") for path in ROOT.glob("docs/learn/*.md")]
    plain = [re.sub(r"\[([^\]]+)\]\([^)]+\)|\*\*", r"\1", text) for text in chapters]
    assert any(question.lesson in " ".join(text.split()) for text in plain), question.lesson


def test_a_page_is_one_program_with_the_lines_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```python\nx = 1\nprint(x)\n```\n\n```text\nold\n```\n\n```python\nprint(x + 1)\n```\n"
    )
    assert doc_pages.run_page(page, tmp_path) == ["1\n", "2\n"]
    assert doc_pages.script(page.read_text()).splitlines()[12] == "print(x + 1)"
    assert "```text\n1\n```" in doc_pages.with_outputs(page.read_text(), ["1\n", "2\n"])
