"""The action explain on a run that was trained for a few steps: the terminal, the file, and the same from Python."""

import io
import json
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape
from rich.table import Table

from tests.functions import whole_characters
from zerotollm.actions.config import ExplainOptions
from zerotollm.actions.explain import explain
from zerotollm.cli import split
from zerotollm.console import Console
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.explain.ablation import COSTLY, ablation, ablation_cost
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.estimates import UNKNOWN, Estimate
from zerotollm.explain.explanation import Explanation, RunExplanation, explain_text, fresh_streams, to_json
from zerotollm.explain.learning import BAND_NAMES, PART_NAMES, Learning
from zerotollm.explain.reference import reference_text
from zerotollm.explain.render.markdown import questions_markdown
from zerotollm.explain.render.page import Report, render
from zerotollm.explain.render.page_answers import answer_sections
from zerotollm.explain.render.terminal import question_tables
from zerotollm.model.config import TransformerConfig


@pytest.fixture(scope="module")
def explanation(run) -> Explanation:
    return run.explain("heaven and earth")


def test_every_question_about_a_text_has_an_answer(explanation):
    sentences = explanation.sentences()
    assert set(sentences) == {
        "tokens", "embedding", "layers", "prediction", "calibration", "positions", "attention", "heads", "ablation",
        "memorization", "sources",
    }  # fmt: skip
    assert not explanation.left_out
    assert explanation.heads.entropy_LH.shape == (1, 2)
    assert explanation.calibration.count_X.sum() > 100
    assert all(line.split(": ", 1)[1] for line in repr(explanation).splitlines())


def test_drawn_token_is_the_one_that_generate_draws(explanation, run):
    text = run.generate("heaven and earth", max_tokens=1)
    assert text == "heaven and earth" + run.tokenizer.decode([explanation.prediction.drawn])


def test_the_text_that_the_model_wrote_stands_before_where_it_is_from(explanation):
    first, *rest = dict(question_tables(explanation))["Where did it get that?"]
    assert first == f"What it writes after the text: “{explanation.sources.text.strip()}”"
    assert rest


def test_action_shows_the_answers_and_writes_the_numbers(run_dir, run, capsys):
    result = explain(run.experiment, run_dir, ExplainOptions(text="heaven [bold]and[/bold] earth"))
    out = capsys.readouterr().out
    flat = " ".join(out.split())
    for question in (
        "Why is the text split",
        "is it 2D or 3D?",
        "why two?",
        "what is the math?",
        "stay focused?",
    ):
        assert question in flat
    assert flat.index("1 nat is 1.44 bits") < flat.index("Why is the text split")
    assert "[bold]" in out.replace("\n", "").replace(" ", "") or "bold" in out
    written = json.loads((run_dir / "explain.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert written["step"] == run.step
    assert len(written["explanation"]["ablation"]["rise_LH"]["value"][0]) == 2
    assert written["explanation"]["heads"]["sentence"]


def test_no_number_is_cut_on_a_terminal_of_80_columns(explanation):
    for _, items in question_tables(explanation):
        for table in (item for item in items if isinstance(item, Table)):
            out = io.StringIO()
            Console(file=out, width=80).print(table)
            for column in table.columns:
                if column.justify == "right":
                    assert all(str(cell) in out.getvalue() for cell in column.cells), column.header
                    assert all(word in out.getvalue() for word in str(column.header).split())


def test_table_of_the_numbers_goes_into_a_page(run_dir, run, explanation, tmp_path):
    table = questions_markdown(4, explanation)
    assert table.startswith("| question | numbers (step 4) |")
    assert len(table.splitlines()) == 2 + 7  # without the answers about the whole run
    assert f"{explanation.embedding.geometry.participation}" in table
    page = tmp_path / "page.md"
    page.write_text("no place for the table", encoding="utf-8")
    options = ExplainOptions(text="heaven and earth", into=str(page))
    with pytest.raises(UsageError, match="no lines <!-- table questions -->"):
        explain(run.experiment, run_dir, options)


def test_table_has_numbers_that_json_leaves_out(explanation):
    """`explain.json` leaves out arrays of more than 64 numbers, but the table is made of hundreds of heads."""
    noise_BALH = np.random.default_rng(0).normal(size=(4, 2, 12, 12))
    big = replace(explanation, ablation=ablation(1.0, 128, "", noise_BALH))
    assert "of 144 heads" in questions_markdown(4, big)
    assert not to_json(big)["ablation"]["rise_LH"]
    band_YG = Estimate(*(np.linspace(9, 1, 100)[:, None] * np.ones(4),) * 3)
    learning = Learning(np.arange(100), band_YG, BAND_NAMES, band_YG, PART_NAMES, band_YG, UNKNOWN)
    table = questions_markdown(99, big, RunExplanation(learning=learning))
    assert "from step 0 to 99, nats: the 10 most frequent tokens 9.00 to 1.00" in table


def test_documents_are_separated_if_training_separated_them(run):
    assert reference_text(run.trained, run.tokenizer).document_bos is None
    data = replace(run.experiment.data, document_mask=True)
    reference = reference_text(replace(run.trained, data=data), run.tokenizer)
    assert reference.document_bos == run.tokenizer.bos_id
    # A document starts in each window. Without that the mask would change nothing.
    held_out_N = np.array(reference.held_out_N[:132])
    held_out_N[16::33] = reference.document_bos
    reference = reference._replace(held_out_N=held_out_N)
    separated, joined = (
        explain_text(run.params, run.model_config, run.tokenizer, "heaven", reference=text)
        for text in (reference, reference._replace(document_bos=None))
    )
    for name in ("layers", "calibration", "positions", "heads", "ablation"):
        one, other = (json.dumps(to_json(getattr(answers, name))) for answers in (separated, joined))
        assert one != other, name


def test_sampler_probabilities_are_those_it_draws_with(run):
    logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    for changes, expected in (
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.2}, [25 / 34, 9 / 34, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ):
        np.testing.assert_allclose(
            sample.probabilities(run._sampling(**changes), whole_characters(4), logits_V, np.array([1])),
            expected,
            atol=1e-6,
        )


def test_samples_are_drawn_as_they_are_scored(run, monkeypatch):
    drawn = []
    monkeypatch.setattr("zerotollm.decoding.sample.generate", lambda *args, **_: drawn.append(args[3]) or [])
    replace(run, experiment=replace(run.experiment, sample=SamplingConfig(top_k=3, top_p=0.5)))._samples(2, 8)
    assert (drawn[0].temperature, drawn[0].top_k, drawn[0].top_p, drawn[0].min_p) == (1.0, 0, 1.0, 0.0)


def test_without_the_training_text_some_answers_are_left_out(run, tmp_path):
    data = replace(run.experiment.data, corpus=str(tmp_path / "gone.txt"))
    run = replace(run, experiment=replace(run.experiment, data=data))
    explanation = run.explain("heaven")
    assert explanation.prediction
    assert explanation.tokens.pieces[0].count == -1
    assert explanation.heads is None
    assert "not found" in explanation.sentences()["heads"]
    with pytest.raises(UsageError, match="is not here"):
        run.study()


def test_on_a_cpu_no_head_of_a_large_model_is_ablated(run, monkeypatch):
    def costly(lm, windows_BW):
        # One layer with two heads, each of which is ablated in two ways.
        assert ablation_cost(lm, windows_BW) == 4 * run.num_parameters * windows_BW[:, 1:].size / 2
        return 2 * COSTLY

    monkeypatch.setattr("zerotollm.explain.explanation.ablation_cost", costly)
    explanation = run.explain("heaven")
    assert explanation.ablation is None
    assert explanation.heads is not None
    assert "too many times for a CPU" in explanation.sentences()["ablation"]


def test_only_one_fresh_model_is_in_memory(monkeypatch):
    class Params(dict):
        pass

    drawn = []

    def draw():
        assert all(reference() is None for reference in drawn), "the last model is still there"
        params = Params()
        drawn.append(weakref.ref(params))
        return params

    monkeypatch.setattr("zerotollm.explain.explanation.streams_of", lambda lm, _: type(lm.params))
    lm = LanguageModel({}, TransformerConfig(), None)
    streams = fresh_streams(lm, np.zeros((1, 2)), lambda: (draw() for _ in range(3)))
    assert list(streams) == [Params] * 3


def test_imported_model_has_no_history(run):
    imported = replace(run, step=0)
    assert [step for step, _ in imported.checkpoints()] == [0]
    assert next(imported.checkpoints())[1] is run.params


def test_sources_of_a_text_of_the_training_text(run):
    train_N = reference_text(run.trained, run.tokenizer).train_N
    copied = run.tokenizer.decode(train_N[100:130])
    answer = run.sources(copied)
    assert answer.longest().length >= 25
    assert answer.longest().passages[0].document.startswith("text")
    assert answer.save
    with pytest.raises(UsageError, match="takes a text to look up"):
        run.sources("")
    gone = replace(run.experiment, data=replace(run.experiment.data, corpus="gone.txt"))
    with pytest.raises(UsageError, match="is not here"):
        replace(run, experiment=gone).sources("heaven")


def test_what_is_looked_up_are_the_tokens_that_generate_writes(explanation, run):
    text = run.generate("heaven and earth", max_tokens=4)
    assert explanation.sources.text == text.removeprefix("heaven and earth")


def test_text_is_required(run, run_dir):
    with pytest.raises(UsageError, match="takes a text"):
        run.explain("")
    with pytest.raises(UsageError, match="takes a text"):
        explain(run.experiment, run_dir, ExplainOptions())


def test_pairs_need_the_checkpoints(run, run_dir):
    with pytest.raises(UsageError, match="add --whole-run True"):
        explain(run.experiment, run_dir, ExplainOptions(text="heaven", judge="pairs"))


def test_text_may_stand_after_the_action():
    command = split(["--experiment", "base", "explain", "In the beginning"])
    assert command.action == "explain"
    assert command.options == (("text", "In the beginning"),)
    with pytest.raises(UsageError, match="unexpected word 'b'"):
        split(["explain", "a", "b"])
    with pytest.raises(UsageError, match="unexpected word 'a'"):
        split(["train", "a"])


def test_every_answer_can_be_shown_and_saved(explanation, tmp_path):
    for name in (
        "tokens", "embedding", "layers", "prediction", "calibration", "positions", "heads", "ablation",
        "memorization", "sources",
    ):  # fmt: skip
        picture = getattr(explanation, name).show()
        assert picture.panels
        assert picture.caption == getattr(explanation, name).sentence()
    picture = explanation.attention.show()
    assert picture.save(tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    page = picture.save(tmp_path / "attention.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot('p") == 3
    assert len(picture.plotly()) == len(picture.panels) == 3
    embedding = explanation.embedding.show()
    replace(embedding, panels=embedding.panels[:2]).save(tmp_path / "embedding.png")
    with pytest.raises(UsageError, match=r"in \.png or \.html"):
        picture.save(tmp_path / "attention.gif")


def test_all_answers_are_on_a_page(explanation):
    sections = answer_sections(explanation, None, "left out: no checkpoints")
    text = render(Report("tiny", "", (), sections))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    figures = json.loads(data)["figures"]
    assert len(figures) > 15
    assert all(figure["data"] and figure["layout"] for figure in figures)
    for sentence in (*explanation.sentences().values(), "left out: no checkpoints"):
        assert escape(sentence) in text


@pytest.mark.slow
def test_whole_run(run_dir, run, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table questions -->\n<!-- end -->\n", encoding="utf-8")
    options = ExplainOptions(text="heaven and earth", whole_run=True, into=str(page))
    result = explain(run.experiment, run_dir, options)
    assert len(page.read_text(encoding="utf-8").splitlines()) == 3 + 2 + 10
    steps = {0, 2, run.step} if run.step == 4 else {0, run.step}
    assert result["study"]["learning"]["steps_Y"] == sorted(steps)
    assert {"meaning", "generation", "learning", "tokenizers"} <= set(result["study"])
    out = " ".join(capsys.readouterr().out.split())
    for question in ("used in the same sentence?", "only grammatical output?", "What did it learn, when?"):
        assert question in out
    for word in ("contexts", "frequent", "repetition", "copied", "loss saved", "bits per byte"):
        assert word in out  # columns are wide enough for the words of their heads
    answers = run.study(samples=2, tokens=12)
    assert answers.generation.own.bits_per_byte.value > 0
    assert np.isfinite(answers.learning.loss_Y.value).all()
    assert answers.layers.tokens > 32 * 8
    *_, (step, params) = run.checkpoints()
    assert step == run.step
    assert params is run.params
