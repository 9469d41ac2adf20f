"""Grammar planted in a text is born in the run that trains on it, and what the text does not have is not."""

import json
import random

import numpy as np
import pytest

import zerotollm
from zerotollm.actions.train import train
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.errors import UsageError
from zerotollm.evaluation.grammar_history import evenly, frequency_answers
from zerotollm.evaluation.likelihood import Question, read_question_files
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig

NOUNS = ("king", "queen", "servant", "house", "river", "city", "daughter", "robot")
VERBS = (("is", "are"), ("was", "were"), ("sings", "sing"), ("falls", "fall"))


def sentence(draw: random.Random, agrees: bool = True) -> str:
    """Return a sentence whose verb agrees with its noun, or not."""
    plural = draw.randrange(2)
    noun, verb = draw.choice(NOUNS), draw.choice(VERBS)
    return f"the {noun}{'s' * plural} {verb[plural if agrees else 1 - plural]} in the {draw.choice(NOUNS)}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run on sentences that agree, and pairs: agreement, and a choice that nothing decides."""
    folder, draw = tmp_path_factory.mktemp("grammar"), random.Random(0)
    texts = (" ".join(sentence(draw) for _ in range(40)) for _ in range(60))
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (folder / "pairs").mkdir()
    pairs: dict[str, list[dict[str, str]]] = {"agreement": [], "nothing": []}
    for _ in range(120):
        plural, noun = draw.randrange(2), draw.choice(NOUNS)
        verb, (place, other) = draw.choice(VERBS), draw.sample(NOUNS, 2)
        good, bad = (f"the {noun}{'s' * plural} {verb[k]} in the {place}." for k in (plural, 1 - plural))
        pairs["agreement"].append({"good": good, "bad": bad})
        pairs["nothing"].append({"good": good, "bad": good.replace(f"the {place}.", f"the {other}.")})
    for name, lines in pairs.items():
        text = "\n".join(json.dumps(line | {"linguistics_term": name}) for line in lines)
        (folder / "pairs" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    experiment = Experiment(
        name="agreement",
        data=DataConfig(
            corpus=str(folder / "text.txt"),
            dir=str(folder / "data"),
            context=64,
            batch_size=8,
            documents="paragraph",
        ),
        tokenizer=TokenizerConfig(vocab_size=330),
        model=TransformerConfig(num_layers=2, width=32, num_heads=2),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=0.01, warmup_steps=5),
        train=TrainConfig(steps=90, eval_every=30, checkpoint_every=30, sample_every=0, keep=3),
    )
    train(experiment, folder / "run")
    return folder


def test_planted_agreement_is_born_and_a_free_choice_is_not(folder):
    run = zerotollm.load(folder / "run", step="last")
    study = run.study("the king is", samples=2, tokens=12, judge=folder / "pairs")
    rules = {rule.name: rule for rule in study.grammar.rules}
    assert study.grammar.steps_Y.tolist() == [0, 30, 60, 90]
    assert rules["agreement"].born in (30, 60, 90)
    assert rules["agreement"].pairs == 50
    assert rules["agreement"].known == 1.0
    assert rules["nothing"].born is None
    assert rules["agreement"].per_million > 1000
    assert "1 of 2 phenomena are shown to be learned by step 90" in study.sentences()["grammar"]
    assert (
        "give a folder of minimal pairs" in run.study("the king", samples=2, tokens=12).sentences()["grammar"]
    )
    with pytest.raises(UsageError, match="nowhere is no file, and no folder"):
        run.study("the king", judge="nowhere")


def test_questions_are_spread_evenly_over_each_group(folder):
    questions = read_question_files(folder / "pairs")
    chosen = evenly(questions, 50)
    assert [question.group for question in chosen] == ["agreement"] * 50 + ["nothing"] * 50
    assert (chosen[0], chosen[49]) == (questions[0], questions[119])
    assert evenly(questions, 1000) == questions


def test_frequencies_decide_by_the_tokens_alone(folder):
    tokenizer = zerotollm.load(folder / "run").tokenizer
    counts_V = np.ones(tokenizer.vocab_size, int)
    counts_V[tokenizer.encode(" king")] = 1000
    texts = [("the king is", "the queen is"), ("the queen is", "the king is"), ("the king is", "is the king")]
    questions = [Question(pair, 0, "") for pair in texts]
    answers = frequency_answers(tokenizer, questions, counts_V, 64)
    assert answers[:2].tolist() == [1.0, 0.0]
