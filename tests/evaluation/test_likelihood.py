"""Likelihoods equal those of the plain forward pass; minimal pairs count which text is likelier."""

import jax
import numpy as np
import pytest

from tests.functions import forward, init_params
from zerotollm.errors import DivergedError, UsageError
from zerotollm.evaluation.likelihood import Question, accuracy_by_group, log_likelihoods, read_questions
from zerotollm.model.config import TransformerConfig, resolve


def test_likelihoods_are_those_of_the_forward_pass_whatever_else_is_scored():
    model = resolve(
        TransformerConfig(num_layers=1, width=16, num_heads=2, token_shift=2), vocab_size=40, context=12
    )
    params, draw = init_params(model, 0), np.random.default_rng(0)
    params = params | {"head": params["head"] * 50}
    texts = [
        (draw.integers(0, 40, n).astype(np.int32), scored) for n, scored in ((13, 12), (2, 1), (9, 3), (1, 0))
    ]
    found, logits = (
        log_likelihoods(params, model, texts, num_tokens=40, rows=3),
        forward(model),
    )
    for (ids_N, scored), (log_p, greedy) in zip(texts, found, strict=True):
        if not scored:
            assert (log_p, greedy) == (0.0, True)
            continue
        logits_TV = logits(params, np.pad(ids_N[:-1], (0, 13 - len(ids_N)))[None])[0][: len(ids_N) - 1, :40]
        log_p_TV = np.asarray(jax.nn.log_softmax(logits_TV))
        each = log_p_TV[np.arange(len(ids_N) - 1), ids_N[1:]][-scored:]
        assert log_p == pytest.approx(each.sum(), abs=1e-4)
        assert greedy == (log_p_TV.argmax(1)[-scored:] == ids_N[1:][-scored:]).all()
    best = int(np.argmax(logits(params, np.full((1, 12), 5, np.int32))[0, 0, :40]))
    assert log_likelihoods(params, model, [(np.array([5, best], np.int32), 1)], num_tokens=40, rows=3)[
        0
    ].greedy


def test_a_model_that_has_diverged_judges_nothing():
    """The highest of numbers that are none is the first: it would be right in every minimal pair."""
    model = resolve(TransformerConfig(num_layers=1, width=16, num_heads=2), vocab_size=40, context=12)
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), init_params(model, 0))
    with pytest.raises(DivergedError, match="are not finite"):
        log_likelihoods(params, model, [(np.array([1, 5], np.int32), 1)], num_tokens=40, rows=2)


def test_questions_are_read_as_blimp_writes_them_or_with_a_gap(tmp_path):
    lines = [
        '{"sentence_good": "a b", "sentence_bad": "b a", "UID": "order"}',
        "",
        '{"good": "x", "bad": "y"}',
        '{"text": "a ___ c", "choices": ["b", "d"], "answer": "d", "group": "gap"}',
        '{"text": "___", "choices": ["b", "d", "e"], "answer": 2}',
        '{"text": "a_b ____.", "choices": ["b", "d___"], "answer": 0}',
        '{"good": "same", "bad": "same"}',
    ]
    assert read_questions(tmp_path, iter(lines)) == [
        Question(("a b", "b a"), 0, "order"),
        Question(("x", "y"), 0, ""),
        Question(("a b c", "a d c"), 1, "gap"),
        Question(("b", "d", "e"), 2, ""),
        Question(("a_b b.", "a_b d___."), 0, ""),
        Question(("same", "same"), 0, ""),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"good": "a", "bad": "\\ud800"}', "line 2: half of a surrogate pair"),
        ("[]", "line 2: expected an object of fields, not a list"),
        ('{"good": "a", "bad": "b", "group": "all"}', 'line 2: "group" is "all"'),
        ('{"good": "a"}', "line 2: good and bad must be two texts"),
        ('{"good": "a", "bad": ""}', "line 2: good and bad must be two texts"),
        ('{"text": "___ a ____", "choices": ["b", "c"], "answer": 0}', "line 2: it needs good and bad"),
        ('{"text": "a"}', "line 2: it needs good and bad, or a text with one gap"),
        ('{"text": "a ___", "choices": ["b"], "answer": 0}', "line 2: choices must be two or more"),
        ('{"text": "a ___", "choices": ["b", "c"], "answer": 2}', "line 2: answer is 2"),
        ('{"text": "a ___", "choices": ["b", "c"], "answer": true}', "line 2: answer is True"),
        (
            '{"text": "___", "choices": ["", "c"], "answer": 1}',
            "line 2: a text is empty with one of its choices",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(UsageError, match=message):
        read_questions(tmp_path / "q.jsonl", iter(['{"good": "a", "bad": "b"}', line]))


def test_no_question_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="holds no question"):
        read_questions(tmp_path, iter(["", " "]))


def test_the_likeliest_is_right_and_equals_are_not():
    questions = [
        Question(("aa", "b"), 0, "one"),
        Question(("aa", "b"), 0, "one"),
        Question(("a", "b", "c", "d"), 3, "two"),
    ]
    judged = accuracy_by_group(questions, [[-3.0, -2.0], [-1.0, -1.0], [-2.0, -2.0, -2.0, -1.0]])
    assert list(judged) == ["one", "two", "all"]
    assert (judged["one"].right, judged["one"].right_per_byte) == (0, 2)
    assert (judged["all"].questions, judged["all"].right) == (3, 1)
    assert judged["all"].chance == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    # Wilson's interval of 1 in 3, as published tables give it.
    assert (round(judged["all"].low, 3), round(judged["all"].high, 3)) == (0.061, 0.792)


def test_a_pair_of_two_equal_texts_is_wrong_and_told():
    """Whatever rounding makes of the two, which are scored in different batches."""
    questions = [
        Question(("aa", "aa"), 0, "one"),
        Question(("aa", "b"), 0, "one"),
        Question(("b", "a"), 0, "two"),
    ]
    for other in (-3.0, -2.0, -2.0000002, -1.0):
        judged = accuracy_by_group(questions, [[-2.0, other], [-1.0, -2.0], [-1.0, -2.0]])
        counts = {name: (found.right, found.right_per_byte, found.equal) for name, found in judged.items()}
        assert counts == {"one": (1, 1, 1), "two": (1, 1, 0), "all": (2, 2, 1)}
        assert judged["all"].questions == 3
