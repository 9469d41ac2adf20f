"""explain, on a run that was trained for a few steps: the terminal, the file, and the same from Python."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape

from zerotollm.actions.config import ExplainOptions
from zerotollm.actions.explain import explain
from zerotollm.cli import split
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.explain.ablation import ablation
from zerotollm.explain.explanation import Explanation, RunExplanation, explain_text, numbers
from zerotollm.explain.learning import BAND_NAMES, PART_NAMES, Learning
from zerotollm.explain.render.markdown import questions_markdown
from zerotollm.explain.render.page import Report, render
from zerotollm.explain.render.page_answers import answer_sections
from zerotollm.explain.statistics import UNKNOWN, Estimate


@pytest.fixture(scope="module")
def explanation(run) -> Explanation:
    return run.explain("heaven and earth")


def test_every_question_of_a_text_has_an_answer(explanation, run):
    said = explanation.sentences()
    assert set(said) == {
        "tokens", "embedding", "layers", "prediction", "calibration", "positions", "attention", "heads", "ablation",
    }  # fmt: skip
    assert not explanation.left_out
    assert explanation.heads.entropy_LH.shape == (1, 2)
    assert explanation.calibration.count_X.sum() > 100
    assert all(line.split(": ", 1)[1] for line in repr(explanation).splitlines())


def test_the_token_that_is_drawn_is_the_one_that_generate_draws(explanation, run):
    written = run.generate("heaven and earth", max_tokens=1)
    assert written == "heaven and earth" + run.tokenizer.decode([explanation.prediction.drawn])


def test_the_action_shows_it_and_keeps_the_numbers(run_dir, run, capsys):
    options = ExplainOptions(text="heaven [bold]and[/bold] earth")
    result = explain(run.experiment, run_dir, options)
    out = capsys.readouterr().out
    for question in (
        "Why is the text split",
        "is it 2D or 3D?",
        "why two?",
        "what is the math?",
        "stay focused?",
    ):
        assert question in " ".join(out.split())
    assert "[bold]" in out.replace("\n", "").replace(" ", "") or "bold" in out
    kept = json.loads((run_dir / "explain.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(result))
    assert kept["step"] == run.step
    assert len(kept["explanation"]["ablation"]["rise_LH"]["value"][0]) == 2
    assert kept["explanation"]["heads"]["sentence"]


def test_the_numbers_of_the_questions_go_into_a_page(run_dir, run, explanation, tmp_path):
    table = questions_markdown(4, explanation)
    assert table.startswith("| question | numbers (step 4) |")
    assert len(table.splitlines()) == 2 + 5  # what the whole run answers is left out
    assert f"{explanation.embedding.geometry.participation}" in table
    page = tmp_path / "page.md"
    page.write_text("no place for it", encoding="utf-8")
    options = ExplainOptions(text="heaven and earth", into=str(page))
    with pytest.raises(UsageError, match="no lines <!-- table questions -->"):
        explain(run.experiment, run_dir, options)


def test_the_table_is_made_of_hundreds_of_heads_and_checkpoints(explanation):
    """`explain.json` leaves arrays of more than 64 numbers out; the table needs some of them."""

    noise_BLH = np.random.default_rng(0).normal(size=(4, 12, 12))
    big = replace(explanation, ablation=ablation(1.0, 128, "", noise_BLH, noise_BLH))
    assert "of 144 heads" in questions_markdown(4, big)
    assert not numbers(big)["ablation"]["rise_LH"]
    band_YG = Estimate(*(np.linspace(9, 1, 100)[:, None] * np.ones(4),) * 3)
    learning = Learning(np.arange(100), band_YG, BAND_NAMES, band_YG, PART_NAMES, band_YG, UNKNOWN)
    assert "from step 0 to 99, nats: the 10 most frequent tokens 9.00 to 1.00" in questions_markdown(
        99, big, RunExplanation(learning=learning)
    )


def test_documents_are_kept_apart_where_training_kept_them_apart(run):
    assert run.material().document_bos is None
    masked = replace(run.experiment, data=replace(run.experiment.data, document_mask=True))
    apart = replace(run, experiment=masked)
    material = apart.material()
    assert material.document_bos == run.tokenizer.bos_id
    # Windows of the middle of a document would be the same either way, so that one begins in each.
    held_out_N = np.array(material.held_out_N[:132])
    held_out_N[16::33] = material.document_bos
    short = material._replace(held_out_N=held_out_N)
    found = [
        explain_text(run.params, run.model_config, run.tokenizer, "heaven", material=m)
        for m in (short, short._replace(document_bos=None))
    ]
    for name in ("layers", "calibration", "positions", "heads", "ablation"):
        one, other = (json.dumps(numbers(getattr(answers, name))) for answers in found)
        assert one != other, name


def test_probabilities_of_the_sampler_are_those_it_draws_with(run):
    logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    for changes, expected in (
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.2}, [25 / 34, 9 / 34, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ):
        found = run._sampled(run._sampling(changes), logits_V)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_samples_are_drawn_as_they_are_scored(run, monkeypatch):
    drawn = []
    monkeypatch.setattr("zerotollm.decoding.sample.generate", lambda *args, **_: drawn.append(args[3]) or [])
    replace(run, experiment=replace(run.experiment, sample=SamplingConfig(top_k=3, top_p=0.5)))._samples(2, 8)
    assert (drawn[0].temperature, drawn[0].top_k, drawn[0].top_p, drawn[0].min_p) == (1.0, 0, 1.0, 0.0)


def test_without_the_text_it_was_trained_with_less_is_said(run, tmp_path):
    away = replace(run.experiment.data, corpus=str(tmp_path / "gone.txt"))
    found = replace(run, experiment=replace(run.experiment, data=away)).explain("heaven")
    assert found.prediction
    assert found.tokens.pieces[0].count == -1
    assert found.heads is None
    assert "not here" in found.sentences()["heads"]
    with pytest.raises(UsageError, match="is not here"):
        replace(run, experiment=replace(run.experiment, data=away)).study()


def test_an_imported_model_has_no_history(run):
    assert [step for step, _ in replace(run, step=0).checkpoints()] == [0]
    assert next(replace(run, step=0).checkpoints())[1] is run.params


def test_a_text_is_needed(run, run_dir):
    with pytest.raises(UsageError, match="takes a text"):
        run.explain("")
    with pytest.raises(UsageError, match="takes a text"):
        explain(run.experiment, run_dir, ExplainOptions())


def test_the_text_may_stand_after_the_action():
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
    ):  # fmt: skip
        picture = getattr(explanation, name).show()
        assert picture.panels
        assert picture.says == getattr(explanation, name).sentence()
    picture = explanation.attention.show()
    assert picture.save(tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    page = picture.save(tmp_path / "attention.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot('p") == 3
    assert len(picture.plotly()) == len(picture.panels) == 3
    space = explanation.embedding.show()
    replace(space, panels=space.panels[:2]).save(tmp_path / "embedding.png")
    with pytest.raises(UsageError, match=r"as \.png or \.html"):
        picture.save(tmp_path / "attention.gif")


def test_all_answers_stand_on_a_page(explanation):
    sections = answer_sections(explanation, None, "left out: no checkpoints")
    text = render(Report("tiny", "", (), sections))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    figures = json.loads(data)["figures"]
    assert len(figures) > 15
    assert all(figure["data"] and figure["layout"] for figure in figures)
    for sentence in (*explanation.sentences().values(), "left out: no checkpoints"):
        assert escape(sentence) in text


@pytest.mark.slow
def test_the_whole_run(run_dir, run, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table questions -->\n<!-- end -->\n", encoding="utf-8")
    options = ExplainOptions(text="heaven and earth", whole_run=True, into=str(page))
    result = explain(run.experiment, run_dir, options)
    assert len(page.read_text(encoding="utf-8").splitlines()) == 3 + 2 + 8
    assert result["study"]["learning"]["steps_Y"] == sorted(
        {0, 2, run.step} if run.step == 4 else {0, run.step}
    )
    assert {"meaning", "generation", "learning", "tokenizers"} <= set(result["study"])
    out = " ".join(capsys.readouterr().out.split())
    for question in ("used in the same sentence?", "only grammatical output?", "What did it learn, when?"):
        assert question in out
    for word in ("contexts", "together", "frequent", "repetition", "copied", "bits per byte"):
        assert word in out  # no column is so narrow that a word of its head is cut
    study = run.study(samples=2, tokens=12)
    assert study.generation.own.bits_per_byte.value > 0
    assert np.isfinite(study.learning.loss_Y.value).all()
    assert study.layers.tokens > 32 * 8
    *_, (step, params) = run.checkpoints()
    assert step == run.step
    assert params is run.params
