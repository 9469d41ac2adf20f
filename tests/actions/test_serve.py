"""serve from the command line, and evaluate --judge, on a run with random parameters; and what serve refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import jax
import pytest

import zerotollm
from tests.functions import init_params
from zerotollm.actions.config import EvaluateOptions, ServeOptions
from zerotollm.actions.evaluate import evaluate
from zerotollm.actions.serve import listen, read_api_key, serve
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.blimp import PUBLISHED
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.experiment import Experiment, to_json
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.memory import serving_memory
from zerotollm.planning.report import HOST_BYTES
from zerotollm.serving import scheduler
from zerotollm.training.checkpoints import CheckpointWriter
from zerotollm.training.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "text.txt").write_text("heaven and earth and light\n" * 9)
    tokenizer = train_tokenizer(
        TokenizerConfig("char", 40, byte_fallback=False), [(folder / "text.txt").read_text()]
    )
    experiment = Experiment(
        name="tiny",
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=32, batch_size=2),
        tokenizer=TokenizerConfig("char", 40, byte_fallback=False),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2),
        train=TrainConfig(steps=2, eval_every=0, sample_every=0, checkpoint_every=0),
    )
    path = folder / "tiny"
    path.mkdir()
    tokenizer.save(path / "tokenizer.model")
    (path / "config.json").write_text(to_json(experiment))
    model = resolve(experiment.model, vocab_size=tokenizer.vocab_size, context=32)
    writer = CheckpointWriter(path / "checkpoints", keep=1)
    writer.save({"params": jax.device_put(init_params(model, 0))}, 2, {"validation": {"bpb": 2.5}})
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_answers_and_stops_when_it_is_asked_to(run_dir, number):
    command = [sys.executable, str(ROOT / "launch.py"), "--run-dir", str(run_dir), "serve", "--port", "0"]
    environment = os.environ | {"ZEROTOLLM_DATA": str(run_dir.parent / "data")}
    with subprocess.Popen(
        [*command, "--rows", "2", "--context", "16"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        address = re.search(r"http://(\S+) is a page", server.stdout.readline())[1]
        connection = HTTPConnection(address, timeout=60)
        body = json.dumps({"prompt": "light", "max_tokens": 5, "seed": 3, "temperature": 0.8})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        (choice,) = json.loads(connection.getresponse().read())["choices"]
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["context_length"] == 16
        connection.request("GET", "/")
        page = connection.getresponse()
        assert b"What the model considered" in page.read()
        assert "'unsafe" not in page.getheader("Content-Security-Policy")
        # Idle, but open: as browsers keep them.
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, err) == (0, "stopped\n", "")
    run = zerotollm.load(run_dir)
    assert run.generate("light", max_tokens=5, seed=3, temperature=0.8) == "light" + choice["text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rows": 0}, "--rows is 0"), ({"port": -1}, "--port is -1"), ({"request_bytes": 0}, "--request-bytes")],
)
def test_options_out_of_range_are_refused_before_any_work(run_dir, changes, message):
    with pytest.raises(UsageError, match=message):
        serve(Experiment(), Path("nowhere"), replace(ServeOptions(), **changes))


def test_other_machines_need_a_key_and_a_file_without_one_is_refused(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.7", ""):
        with pytest.raises(UsageError, match=r"admits other machines: give --api-key-file"):
            serve(Experiment(), Path("nowhere"), ServeOptions(host=host))
    file = tmp_path / "key"
    for content in (b"", b" \n", b"two words", b"two\nlines", "schlüssel".encode(), b"\xff", b"a\x00b"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="holds no key"):
            read_api_key(str(file))
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_api_key(str(path))
    file.write_text("sk-secret\n")
    assert read_api_key(str(file)) == "sk-secret"
    with pytest.raises(UsageError, match="holds no key"):
        read_api_key("/dev/zero")


def test_a_context_that_does_not_fit_is_refused_in_one_line_with_numbers(run_dir, monkeypatch):
    run = zerotollm.load(run_dir)
    monkeypatch.setattr(scheduler, "compile_programs", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match="--context is 33, and the context of this model is 32"):
        serve(run.experiment, run_dir, ServeOptions(port=0, context=33))
    sizes = [serving_memory(run.model_config, 1000, context) for context in (16, 32)]
    room = sum(sizes[0].values())
    monkeypatch.setattr("zerotollm.actions.serve.memory_here", lambda: HOST_BYTES + room)
    with pytest.raises(UsageError) as refused:
        serve(run.experiment, run_dir, ServeOptions(port=0, rows=1000))
    total, cache = sum(sizes[1].values()) / 1e9, sizes[1]["KV cache"] / 1e9
    assert str(refused.value) == (
        f"1000 texts of 32 tokens at once take {total:.2f} GB (parameters 0.00, KV cache {cache:.2f}, workspace "
        f"{sizes[1]['workspace'] / 1e9:.2f}), and {room / 1e9:.2f} GB are free: give --context 16, or fewer "
        "--rows than 1000"
    )
    monkeypatch.setattr("zerotollm.actions.serve.memory_here", lambda: HOST_BYTES + room - 1)
    with pytest.raises(UsageError, match=r"GB are free: give fewer --rows than 1000$"):
        serve(run.experiment, run_dir, ServeOptions(port=0, rows=1000))


def test_a_model_that_labels_texts_is_not_served():
    experiment = Experiment(train=TrainConfig(objective="label"), data=DataConfig(corpus="genre:bible-web"))
    with pytest.raises(UsageError, match="no language model"):
        serve(experiment, Path("nowhere"), ServeOptions())


def test_a_port_that_is_taken_or_is_none_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port}: Address already in use; choose another --port"):
            listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="at most 65535"):
        listen("127.0.0.1", 99999)


def test_the_likelier_of_two_texts_is_judged(run_dir, tmp_path, capsys):
    run = zerotollm.load(run_dir)
    file = tmp_path / "questions.jsonl"
    pairs = [("light", "earth"), ("and", "heaven")]
    records = [{"good": good, "bad": bad, "group": good} for good, bad in pairs]
    records.append(
        {"text": "heaven and ___", "choices": ["earth", "light"], "answer": "earth", "group": "gap"}
    )
    records.append(
        {"sentence_good": "heaven was left by earth.", "sentence_bad": "heaven was left by earth."}
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = EvaluateOptions(judge=str(file))
    result = evaluate(run.experiment, run_dir, options)
    assert result == json.loads((run_dir / "evaluation-judge.json").read_text())[str(file)]
    assert "1 of the questions hold the right text twice and count as wrong" in capsys.readouterr().out
    assert (result["groups"]["all"]["questions"], result["groups"]["all"]["equal"]) == (4, 1)
    texts = [*(text for pair in pairs for text in pair), "heaven and earth", "heaven and light"]
    ids = [[1, *run.tokenizer.encode(text).tolist()] for text in texts]
    scores = log_likelihoods(
        run.params,
        run.model_config,
        [(jax.numpy.array(i), len(i) - 1) for i in ids],
        num_tokens=run.tokenizer.vocab_size,
    )
    right = [scores[i].log_p > scores[i + 1].log_p for i in (0, 2, 4)]
    groups = result["groups"]
    assert [groups[name]["right"] for name in ("light", "and", "gap")] == right
    assert groups["all"]["right"] == sum(right)
    for split in ("validation", "test"):  # whose evaluation is another file
        (run_dir / f"evaluation-{split}.json").write_text("kept")
        evaluate(
            run.experiment, run_dir, EvaluateOptions(judge=str(file.rename(tmp_path / f"{split}.jsonl")))
        )
        file = tmp_path / f"{split}.jsonl"
        assert (run_dir / f"evaluation-{split}.json").read_text() == "kept"
    with pytest.raises(UsageError, match="is no file"):
        evaluate(run.experiment, run_dir, EvaluateOptions(judge="nowhere.jsonl"))


def test_a_folder_is_judged_by_phenomenon_beside_published_numbers(run_dir, tmp_path, capsys):
    run = zerotollm.load(run_dir)
    terms = [*(PUBLISHED.keys() - {"all"}), "s-selection"]
    for number, term in enumerate(terms):
        pair = {"sentence_good": "heaven and earth", "sentence_bad": "heaven and light"}
        record = pair | {"UID": f"paradigm {number}", "linguistics_term": term}
        (tmp_path / f"{number}.jsonl").write_text(2 * (json.dumps(record) + "\n"))
    result = evaluate(run.experiment, run_dir, EvaluateOptions(judge=str(tmp_path)))
    assert result["groups"].keys() == PUBLISHED.keys()
    assert result["groups"]["argument_structure"]["questions"] == 4
    assert len(result["paradigms"]) == 14
    (file,) = [tmp_path / "0.jsonl"]
    alone = evaluate(run.experiment, run_dir, EvaluateOptions(judge=str(file)))
    assert 13 * alone["groups"]["all"]["right"] == result["groups"]["all"]["right"]
    shown = capsys.readouterr().out
    for published in ("Transformer-XL", "61.2", "83.0"):
        assert published in shown
