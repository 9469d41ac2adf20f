"""Rows of jsonl, pairs and passages as tokens, of which only some are targets."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import open_feed
from zerotollm.data.sources.conversations import chat_parts
from zerotollm.data.sources.examples import open_examples
from zerotollm.data.tokens.conversations import encode_parts
from zerotollm.data.tokens.examples import prepare_examples
from zerotollm.data.tokens.pairs import prepare_pairs
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, translates
from zerotollm.training.config import TrainConfig

CHARACTERS = TokenizerConfig(kind="char", vocab_size=300)


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    """Makes a DataConfig of records."""

    def make(records, **fields) -> DataConfig:
        corpus = write(tmp_path / "my.jsonl", records)
        defaults = {"dir": str(tmp_path / "data"), "context": 64, "batch_size": 2, "buckets": 3}
        return DataConfig(corpus=corpus, **(defaults | fields))

    return make


def learned(feed, batch) -> list[str]:
    """Return the target text of each row of a batch."""
    return [
        feed.tokenizer.decode(targets[weights > 0])
        for targets, weights in zip(batch["targets"], batch["weights"], strict=True)
        if weights.any()
    ]


def completions(count: int) -> list[dict]:
    return [{"prompt": f"what is {i}?", "completion": f" {'x' * (i % 30)} {i}"} for i in range(count)]


def test_only_the_completion_is_learned_and_what_ends_it(data):
    feed = open_feed(data(completions(60)), CHARACTERS, objective="completion")
    seen = []
    for batch in feed.evaluation("validation"):
        seen += learned(feed, batch)
        for inputs, targets, weights in zip(
            *(batch[n] for n in ("inputs", "targets", "weights")), strict=True
        ):
            if not weights.any():
                continue
            assert inputs[0] == feed.tokenizer.bos_id
            last = np.flatnonzero(weights)[-1]
            assert targets[last] == feed.tokenizer.stop_id
            assert (inputs[1 : last + 1] != feed.tokenizer.pad_id).all()
            assert (inputs[last + 1 :] == feed.tokenizer.pad_id).all()
            asked = np.flatnonzero(weights)
            assert (np.diff(asked) == 1).all()
            assert (targets[asked[:-1]] == inputs[asked[1:]]).all()  # each is what comes next
    expected = open_examples(data(completions(60)), "completion").splits["validation"]
    assert sorted(seen) == sorted(example.parts[1].text for example in expected)
    assert feed.num_bytes["validation"] == sum(len(text.encode()) for text in seen)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text.strip())
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12).filter(
    lambda text: text.strip() and not text.startswith("\ufeff")
)
ANY_BYTES = train_tokenizer(TokenizerConfig(vocab_size=290), ["def f(x):\n    return x\n" * 9, "hello there"])
ASCII_NFKC = train_tokenizer(
    TokenizerConfig(kind="char", vocab_size=100, byte_fallback=False, normalization="nfkc"),
    ["".join(map(chr, range(32, 127)))],
)


def decoded_bytes(tokenizer, ids) -> int:
    """What decoding gives of a text, without the marks of what was lost."""
    return len(tokenizer.decode(ids[ids != tokenizer.unk_id]).encode())


@given(
    texts=st.lists(TEXT, min_size=2, max_size=4),
    spaces=st.sampled_from(["", " ", "\n", "    ", "\u3000"]),
    lossy=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_bytes_that_are_counted_are_those_that_are_learned(texts, spaces, lossy, tmp_path_factory):
    """Less the space that is put before an answer, as before every sentence."""
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer = ASCII_NFKC if lossy else ANY_BYTES
    texts += [f"{spaces}return x{spaces}"]
    turns = [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]
    records = [{"prompt": "a", "completion": text} for text in texts] + [{"messages": turns}]
    held_out = write(folder / "held.jsonl", [{"prompt": "held", "completion": "out"}])
    data = DataConfig(write(folder / "my.jsonl", records), validation=held_out, dir=str(folder / "data"))
    split = prepare_examples(data, tokenizer, "completion").splits["train"]
    ends = [*split.starts_E[1:], len(split.tokens_N)]
    sentences = [0] * len(texts) + [len(texts)]
    for start, end, counted, added in zip(split.starts_E, ends, split.num_bytes, sentences, strict=True):
        ids, is_learned = split.tokens_N[start:end], split.learned_N[start:end] > 0
        learned_ids = ids[is_learned & (ids != tokenizer.stop_id)]
        told = decoded_bytes(tokenizer, learned_ids) - added
        if lossy:
            assert counted <= told, "compatibility characters may be longer than what was written"
        else:
            assert counted == told
    if not lossy:
        assert split.num_bytes.tolist()[:-1] == [len(text.encode()) for text in texts]


@given(lines=st.lists(LINE, min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_bytes_of_pairs_are_those_of_the_targets(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.tsv").write_text("".join(f"source\t {line} \n" for line in lines), encoding="utf-8")
    (folder / "held.tsv").write_text("held\tout\n")
    data = DataConfig(str(folder / "a.tsv"), validation=str(folder / "held.tsv"), dir=str(folder / "data"))
    pairs = prepare_pairs(data, ANY_BYTES).splits["train"]
    examples = prepare_examples(data, ANY_BYTES, "completion").splits["train"]
    expected = [len(line.strip().encode()) for line in lines]
    assert pairs.num_bytes.tolist() == examples.num_bytes.tolist() == expected
    starts = [*pairs.targets.document_starts_D, len(pairs.targets.tokens_N)]
    for start, end, counted in zip(starts, starts[1:], expected, strict=False):
        assert decoded_bytes(ANY_BYTES, pairs.targets.tokens_N[start + 1 : end]) == counted + 1


def test_an_epoch_has_every_example_once_and_a_batch_is_a_function_of_its_step(data):
    feed = open_feed(data(completions(60)), CHARACTERS, objective="completion")
    again = open_feed(data(completions(60)), CHARACTERS, objective="completion")
    batches = feed.training(seed=3)
    steps = round(feed.tokens / feed.tokens_per_step)
    epoch = [text for step in range(steps) for text in learned(feed, batches[step])]
    expected = open_examples(data(completions(60)), "completion").splits["train"]
    assert sorted(epoch) == sorted(example.parts[1].text for example in expected)
    for step in (0, 7, 40):
        for name, array in batches[step].items():
            assert array.tobytes() == again.training(seed=3)[step][name].tobytes()
    assert {batches[step]["inputs"].shape for step in range(steps)} <= {
        shapes["inputs"][0] for shapes in feed.training_shapes
    }


def test_too_long_completions_are_left_out_and_counted(data):
    feed = open_feed(data(completions(60), context=40), CHARACTERS, objective="completion")
    assert "longer than 40 tokens" in feed.dropped


CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Assistant: I lie"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "Yes."},
]


def test_of_a_conversation_the_answers_are_learned_and_a_prompt_has_the_tokens_of_training(data):
    filler = [{"messages": [{"role": "user", "content": f"{i}"}, CONVERSATION[2]]} for i in range(40)]
    fields = {"validation": "", "context": 128}
    config = data([*filler, {"messages": CONVERSATION}], **fields)
    feed = open_feed(config, CHARACTERS, objective="completion")
    tokenizer = feed.tokenizer
    whole = encode_parts(tokenizer, chat_parts(CONVERSATION))
    prompt = encode_parts(tokenizer, chat_parts(CONVERSATION[:2], answer=True))
    assert (whole[: len(prompt)] == prompt).all()
    # What a user writes never ends a message: that token is in no text.
    assert (whole == tokenizer.stop_id).sum() == len(CONVERSATION) + (tokenizer.bos_id == tokenizer.stop_id)
    rows = [
        row
        for split in ("validation", "train")
        for batch in (
            feed.evaluation(split) if split == "validation" else [feed.training(seed=0)[s] for s in range(60)]
        )
        for row in learned(feed, batch)
    ]
    assert set(rows) == {" No.", " No. Yes."}


def labels(count: int) -> list[dict]:
    return [
        {"text": f"{'good' if i % 2 else 'bad'} " * (1 + i % 9) + str(i), "label": "+-"[i % 2]}
        for i in range(count)
    ]


def test_a_label_is_asked_for_at_the_last_token_of_a_text_which_may_be_cut(data):
    feed = open_feed(data(labels(80), context=20), CHARACTERS, objective="label")
    assert feed.labels == ("+", "-")
    assert feed.dropped == ""
    examples = {
        e.parts[0].text: e.label for e in open_examples(data(labels(80)), "label").splits["validation"]
    }
    seen = 0
    for batch in feed.evaluation("validation"):
        for inputs, targets, weights in zip(
            *(batch[n] for n in ("inputs", "targets", "weights")), strict=True
        ):
            if not weights.any():
                continue
            (asked,) = np.flatnonzero(weights)
            real = np.flatnonzero(inputs != feed.tokenizer.pad_id)
            assert asked == real[-1]
            text = feed.tokenizer.decode(inputs[real])
            found = {label for whole, label in examples.items() if whole.startswith(text)}
            assert feed.labels[targets[asked]] in found
            seen += 1
    assert seen == len(examples) == feed.num_bytes["validation"] == feed.evaluation_tokens


def test_passages_of_the_bible_are_cut_from_the_chapters_of_each_split():
    made = open_examples(DataConfig(corpus="genre:bible-web"), "label")
    assert made.labels == ("apocalypse", "gospel", "history", "law", "letter", "poetry", "prophecy")
    from zerotollm.data.sources.bible import read_chapters

    chapters = read_chapters("web")
    for split, examples in made.splits.items():
        whole = {document.id: document.text for document in chapters[split]}
        assert {example.label for example in examples} == set(made.labels)
        for example in examples[:: max(1, len(examples) // 50)]:
            chapter = example.id.removeprefix("web ").split(", passage")[0]
            assert example.parts[0].text.strip() in whole[chapter]


@pytest.mark.parametrize(
    ("line", "objective", "message"),
    [
        ('{"prompt": "a"', "completion", r"my\.jsonl, line 31: not JSON"),
        ("[1]", "completion", r"line 31: expected an object of fields, not a list"),
        ('{"prompt": "a"}', "completion", r"line 31: field 'completion' is missing.*fields: prompt"),
        ('{"prompt": "", "completion": "b"}', "completion", r"line 31: field 'prompt' is empty"),
        ('{"prompt": "a", "completion": 3}', "completion", r"line 31: field 'completion' is 3"),
        (
            '{"prompt": "a", "completion": "\\ud800"}',
            "completion",
            r"line 31, field 'completion': half of a surr",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\udc00"}]}',
            "completion",
            r"line 31, message 2: half of a surrogate pair",
        ),
        ('{"messages": []}', "completion", r"line 31: messages must be a list"),
        (
            '{"messages": [{"role": {}, "content": "a"}]}',
            "completion",
            r"line 31: message 1 has the role {}",
        ),
        (
            '{"messages": [{"role": "me", "content": "a"}]}',
            "completion",
            r"line 31: message 1 has the role 'me'",
        ),
        ('{"messages": [{"role": "user"}]}', "completion", r"line 31: message 1 has no content"),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "completion",
            r"line 31: no message is by the assist",
        ),
        ('{"text": "a", "label": ""}', "label", r"line 31: field 'label' is empty"),
        ('{"text": "a", "label": 1.5}', "label", r"line 31: field 'label' is 1.5; expected a text"),
        ('{"label": "a"}', "label", r"line 31: field 'text' is missing"),
    ],
)
def test_a_bad_line_is_named(data, line, objective, message):
    good = completions(30) if objective == "completion" else labels(30)
    config = data(good)
    with open(config.corpus, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=message):
        open_examples(config, objective)


def test_a_label_must_be_among_those_of_the_training_examples(data, tmp_path):
    records = [{"text": f"t {i}", "label": label} for i, label in enumerate("+??!-?")]
    validation = write(tmp_path / "validation.jsonl", records)
    with pytest.raises(UsageError) as caught:
        open_examples(data(labels(30), validation=validation), "label")
    line = str(caught.value)
    assert f"these labels: '!' (1 validation example, {validation}, line 4)" in line
    assert f"'?' (3 validation examples, {validation}, line 2)" in line
    assert "the model learns +, -: give each of them training examples, or remove these examples" in line
    with pytest.raises(UsageError, match=r"has one label to train on, '\+'"):
        open_examples(data([{"text": f"a{i}", "label": "+"} for i in range(30)]), "label")


def test_few_examples_cannot_be_split(data):
    with pytest.raises(UsageError, match=r"has 3 examples, and a split needs at least 20"):
        open_examples(data(completions(3)), "completion")


def test_a_pair_is_a_completion_after_a_line_end(tmp_path):
    for side in "ab":
        (tmp_path / f"{side}.txt").write_text("".join(f"{side} {i}\n" for i in range(40)), encoding="utf-8")
    corpus = f"{tmp_path / 'a.txt'}:{tmp_path / 'b.txt'}"
    made = open_examples(DataConfig(corpus=corpus), "completion")
    parts = made.splits["train"][0].parts
    assert (parts[0].text, parts[1].text) == (" a 1\n", " b 1")
    assert (parts[0].learned, parts[1].learned, parts[1].ends) == (False, True, True)


@pytest.mark.parametrize("name", ["10:30.jsonl", "c++/my.jsonl", "genre:mine.jsonl", "10:30/my.jsonl.gz"])
def test_a_path_with_a_colon_or_a_plus_is_a_path(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    records = [c | {"text": f"text {i}", "label": str(i % 2)} for i, c in enumerate(completions(60))]
    write(path, records)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    for objective in ("completion", "label"):
        for corpus in (name, f"*{name[1:]}"):
            made = open_examples(DataConfig(corpus=corpus), objective)
            assert sum(map(len, made.splits.values())) == 60
    one = Experiment(data=DataConfig(corpus=name), train=TrainConfig(objective="completion"))
    assert not translates(one)
    path.unlink()
    assert not translates(one), "a run knows what it learned where its data is gone"


def test_bytes_that_are_lost_of_what_is_learned_are_counted(data):
    """Three UTF-8 bytes of a character that is not in the vocabulary; those of a prompt are not learned."""
    records = [{"prompt": "天天", "completion": f"ab天 {i % 7}"} for i in range(60)]
    prepared = prepare_examples(data(records), ASCII_NFKC, "completion")
    sizes = {split: len(examples.starts_E) for split, examples in prepared.splits.items()}
    assert sum(sizes.values()) == 60
    assert prepared.counts.lost == {split: 3 * size for split, size in sizes.items()}
    for split, examples in prepared.splits.items():
        assert examples.num_bytes.tolist() == [4] * sizes[split]
        # a, b, unk, the space, the digit, and what ends them
        assert examples.num_predicted.tolist() == [6] * sizes[split]


def test_a_labelled_text_of_exactly_the_context_is_not_cut(data):
    records = [{"text": "a" * (2 + i % 3), "label": "+-"[i % 2]} for i in range(60)]
    prepared = prepare_examples(data(records, context=4), ASCII_NFKC, "label")
    train = prepared.splits["train"]
    whole = np.diff(np.append(train.starts_E, len(train.tokens_N))) - 1  # bos, a space and 2 to 4 letters
    assert set(whole.tolist()) == {4, 5, 6}
    assert train.num_cut == ((whole > 4).sum(), (whole - 4).sum())
    assert set(train.side_lengths[:, 0].tolist()) == {4}
