"""export --format html: the file, what is printed about it, and what is refused before anything is measured."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from tokenizers import normalizers

from tests.imported_tokenizers import byte_level
from zerotollm.actions.config import ExportOptions
from zerotollm.actions.export import export
from zerotollm.errors import UsageError
from zerotollm.programs.html_program import check_page
from zerotollm.session.model_page import page_facts


def data_of(text: str) -> dict:
    return json.loads(re.search('<script type="application/json" id="model">(.*?)</script>', text)[1])


def test_the_share_of_held_out_positions_is_printed_and_on_the_page(run, run_dir, tmp_path, capsys):
    out = export(run.experiment, run_dir, ExportOptions(out=str(tmp_path / "tiny.html"), format="html"))
    data = data_of(out.read_text(encoding="utf-8"))
    same, positions = data["agreement"]["same"], data["agreement"]["positions"]
    assert f"in {100 * same / positions:.2f} % of {positions:,} held-out positions" in capsys.readouterr().out
    assert 0 < same <= positions
    assert (data["title"], data["step"], data["roles"]) == ("tiny", run.step, None)
    assert data["parameters"] == run.num_parameters


def test_without_the_held_out_text_nothing_is_claimed(run, run_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"] |= {"corpus": str(tmp_path / "gone.txt"), "dir": str(tmp_path / "data")}
    (copy / "config.json").write_text(json.dumps(config))
    out = export(run.experiment, copy, ExportOptions(out=str(tmp_path / "tiny.html"), format="html"))
    assert data_of(out.read_text(encoding="utf-8"))["agreement"] is None
    assert "not compared with float32, as the held-out text is not here" in capsys.readouterr().out


def test_what_a_page_cannot_hold_is_refused(run, run_dir, tmp_path):
    there = tmp_path / "there.html"
    there.write_text("")
    with pytest.raises(UsageError, match="exists already: give another --out"):
        export(run.experiment, run_dir, ExportOptions(out=str(there), format="html"))
    with pytest.raises(UsageError, match="leave --dtype out"):
        export(run.experiment, run_dir, ExportOptions(out=str(there), format="html", dtype="float16"))
    lower = byte_level(normalizer=normalizers.Lowercase())
    with pytest.raises(UsageError, match="the imported tokenizer of this model has the normalizer Lowercase"):
        check_page(tmp_path / "new.html", run.model_config, lower, translates=False)
    encoder = replace(run.model_config, architecture="encoder-decoder", encoder_layers=1)
    with pytest.raises(UsageError, match="continues texts or translates, and this model does neither"):
        check_page(tmp_path / "new.html", encoder, run.tokenizer, translates=False)
    assert page_facts(run).bpb == run.validation_bpb
