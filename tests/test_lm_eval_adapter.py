"""EleutherAI's harness on a run: its three questions, and a task that is defined here."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.functions import forward, init_params
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.evaluation.likelihood import log_likelihoods
from zerotollm.experiment import Experiment
from zerotollm.lm_eval_adapter import harness_model
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.run import Run

pytest.importorskip("lm_eval", reason="optional: requirements-torch.txt")


@pytest.fixture(scope="module")
def run() -> Run:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(["heaven", "earth", "light", "day"], 40)) for _ in range(60)]
    tokenizer = train_tokenizer(TokenizerConfig("char", 40, byte_fallback=False), lines)
    config = TransformerConfig(num_layers=1, width=16, num_heads=2, token_shift=2)
    model = resolve(config, vocab_size=tokenizer.vocab_size, context=32)
    params = init_params(model, 0)
    params = params | {"head": params["head"] * 50}
    return Run(Path("nowhere"), Experiment(), model, 0, params, tokenizer)


@pytest.fixture(scope="module")
def model(run):
    return harness_model(run, rows=2)


def asked(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def alone(run, text: str, scored: int) -> float:
    ids_N = np.append(1, run.tokenizer.encode(text))[-33:]
    (found,) = log_likelihoods(
        run.params, run.model_config, [(ids_N, scored)], num_tokens=run.tokenizer.vocab_size, rows=2
    )
    return found.log_p


def test_likelihoods_of_continuations(run, model):
    pairs = [("heaven", " and"), ("heaven ", "and"), ("", "light"), ("day" * 20, "light")]
    found = model.loglikelihood([asked(*pair) for pair in pairs])
    assert found[0] == pytest.approx(found[1])
    for (before, after), (log_p, _) in zip(pairs[::2] + pairs[3:], found[::2] + found[3:], strict=True):
        scored = len(run.tokenizer.encode(before.rstrip() + after)) - len(
            run.tokenizer.encode(before.rstrip())
        )
        assert log_p == pytest.approx(alone(run, before + after, scored), abs=1e-4)


@pytest.fixture(scope="module")
def words() -> Run:
    """Whole words are tokens, and a word with a space before it is one too."""
    tokenizer = train_tokenizer(
        TokenizerConfig("bpe", 300), ["the lanterns river lanterns wall lanterns"] * 200
    )
    config = TransformerConfig(num_layers=1, width=32, num_heads=2)
    model = resolve(config, vocab_size=tokenizer.vocab_size, context=32)
    return Run(Path("nowhere"), Experiment(), model, 0, init_params(model, 1), tokenizer)


def test_a_token_over_the_border_is_of_the_continuation(words):
    encode = lambda text: words.tokenizer.encode(text).tolist()  # noqa: E731
    (lanterns,) = encode(" lanterns")
    pairs = [("the lan", "terns"), ("the lan", "terns river"), ("the", " lanterns"), ("the ", "lanterns")]
    pairs += [("the lan", "xqz"), ("the lan", "")]
    found = [log_p for log_p, _ in harness_model(words).loglikelihood([asked(*pair) for pair in pairs])]
    whole_N = np.array([words.tokenizer.bos_id, *encode("the lanterns river")], np.int32)
    logits_TV = forward(words.model_config)(words.params, whole_N[None])[0]
    log_p_TV = np.asarray(jax.nn.log_softmax(logits_TV[:, : words.tokenizer.vocab_size]), np.float64)
    start = whole_N.tolist().index(lanterns)
    word = log_p_TV[start - 1, lanterns]
    rest = sum(log_p_TV[i - 1, whole_N[i]] for i in range(start, len(whole_N)))
    assert word < -1
    np.testing.assert_allclose(found[:4], [word, rest, word, word], rtol=1e-4)
    # What shares no token with the context's own ids counts from where they part.
    assert encode("the lanxqz")[: len(encode("the lan"))] == encode("the lan")
    assert found[4] < -3 * 3
    assert found[5] == 0.0


def test_all_of_a_continuation_counts_where_it_is_longer_than_the_context(run, model):
    long = "light day " * 9
    ((paired, _),) = model.loglikelihood([asked("", long)])
    (rolled,) = model.loglikelihood_rolling([asked(long)])
    assert paired == pytest.approx(rolled)
    assert paired < 2 * alone(run, long, 32)


def test_a_long_text_is_scored_once_each_token(run, model):
    short, long = "heaven and earth", "light day " * 9
    whole, rolled = model.loglikelihood_rolling([asked(short), asked(long)])
    assert whole == pytest.approx(alone(run, short, len(run.tokenizer.encode(short))), abs=1e-4)
    ids = [1, *run.tokenizer.encode(long).tolist()]
    expected, tokens = 0.0, len(ids) - 1
    assert tokens > 2 * 32
    for start in range(0, tokens, 32):
        end = min(start + 32, tokens)  # the last window is as full as the others
        window = np.array(ids[max(0, end - 32) : end + 1], np.int32)
        (found,) = log_likelihoods(
            run.params, run.model_config, [(window, end - start)], num_tokens=run.tokenizer.vocab_size, rows=2
        )
        expected += found.log_p
    assert rolled == pytest.approx(expected, rel=1e-5)


def test_generation_ends_at_a_stop_string(run, model):
    free, cut, short = model.generate_until(
        [
            asked("heaven", {"until": [], "max_gen_toks": 12}),
            asked("heaven", {"until": ["e"], "max_gen_toks": 12}),
            asked("earth " * 20, {"until": "\n\n", "max_gen_toks": 5}),
        ]
    )
    ids_N = np.append(1, run.tokenizer.encode("heaven")).astype(np.int32)
    greedy = SamplingConfig(max_tokens=12, temperature=0.0)
    (expected,) = sample.generate(
        run.params, run.net, [ids_N], greedy, stop_ids=(1,), utf8=run.tokenizer.utf8
    )
    assert free == run.tokenizer.decode(expected, final=False)
    assert cut == free.partition("e")[0]
    assert len(short) <= 5


TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
{body}
"""
BODIES = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{before}}"
metric_list: [{metric: bits_per_byte}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{before}}"
doc_to_target: "{{before}}"
generation_kwargs: {until: ["y"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.slow
def test_tasks_that_are_defined_here(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    documents = [
        {"before": f"{word} and", "choices": [" light", " day", " earth"], "answer": i % 3}
        for i, word in enumerate(["heaven", "earth", "light", "day"])
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    for kind, body in BODIES.items():
        (tmp_path / f"{kind}.yaml").write_text(TASK.format(kind=kind, path=data, body=body))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tasks = [f"tiny_{kind}" for kind in BODIES]
    results = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0)["results"]
    right = 0
    for document in documents:
        scores = [
            pair[0]
            for pair in model.loglikelihood([asked(document["before"], c) for c in document["choices"]])
        ]
        right += int(np.argmax(scores)) == document["answer"]
    assert results["tiny_choice"]["acc,none"] == right / 4
    total = sum(model.loglikelihood_rolling([asked(document["before"]) for document in documents]))
    size = sum(len(document["before"]) for document in documents)
    assert results["tiny_perplexity"]["bits_per_byte,none"] == pytest.approx(
        -total / size / np.log(2), rel=1e-4
    )
    assert results["tiny_writing"]["exact_match,none"] == 0.0
