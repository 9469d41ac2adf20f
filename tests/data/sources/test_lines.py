"""Line ends in every kind of file, and malformed JSON for every reader of jsonl."""

import gzip
import json
import sys

import pytest

from zerotollm.data.config import DataConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.examples import open_examples
from zerotollm.data.sources.lines import read_lines, read_records
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import read_questions
from zerotollm.experiment import from_json

LINES = 40
READERS = {
    "corpus": (lambda path: open_corpus(DataConfig(corpus=str(path))), {"text": "some text"}),
    "completions": (
        lambda path: open_examples(DataConfig(corpus=str(path)), "completion"),
        {"prompt": "a", "completion": "b"},
    ),
    "conversations": (
        lambda path: open_examples(DataConfig(corpus=str(path)), "completion"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ),
    "labels": (
        lambda path: open_examples(DataConfig(corpus=str(path)), "label"),
        {"text": "a", "label": "b"},
    ),
    "questions": (lambda path: read_questions(path, read_lines(path)), {"good": "a", "bad": "b"}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("1" * 5000, "a whole number of more than 4,300 digits"),
        ("}", "Expecting value, column"),
    ],
)
def test_json_that_python_cannot_read_is_refused_with_its_place(tmp_path, reader, value, reason):
    read, record = READERS[reader]
    path = tmp_path / "a.jsonl"
    good = json.dumps(record)
    path.write_text(f'{good}\n\n{good[:-1]}, "more": {value}}}\n{good}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3: not JSON \(") as caught:
        read(path)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_number_of_as_many_digits_as_python_reads_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "{"word " * 50}", "n": {"9" * sys.get_int_max_str_digits()}}}\n')
    assert open_corpus(DataConfig(corpus=str(path))).splits["train"]


def test_a_configuration_nested_too_deeply_is_refused():
    with pytest.raises(UsageError, match="is not JSON"):
        from_json("[" * 100_000)


# --- what ends a line

ENDS = {"unix": "\n", "windows": "\r\n", "mac": "\r"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_lines_end_alike_in_every_file(tmp_path, end, last, packed):
    def write(name, lines):
        content = (ENDS[end].join(lines) + ENDS[end] * last).encode()
        path = tmp_path / f"{name}{'.gz' * packed}"
        path.write_bytes(gzip.compress(content) if packed else content)
        return str(path)

    numbers = range(LINES)
    assert list(read_lines(tmp_path / write("l.txt", ["a", "", "ç"]))) == ["a", "", "ç"]

    paragraphs = [f"paragraph {i}" for i in numbers]
    content = [line for text in paragraphs for line in (text, "")]
    text = open_corpus(DataConfig(corpus=write("a.txt", content), documents="paragraph"))
    assert sorted(d.text for s in text.splits.values() for d in s) == sorted(paragraphs)
    assert {d.metadata["line"] for s in text.splits.values() for d in s} == set(range(1, 2 * LINES, 2))
    file = open_corpus(DataConfig(corpus=write("b.txt", ["first line", "second"]), documents="file"))
    assert "".join(d.text for s in file.splits.values() for d in s) == "first line\nsecond" + "\n" * last

    rows = open_corpus(DataConfig(corpus=write("a.jsonl", [json.dumps({"text": f"n {i}"}) for i in numbers])))
    assert sorted(d.text for s in rows.splits.values() for d in s) == sorted(f"n {i}" for i in numbers)

    pairs = [(f"eins {i}", f"one {i}") for i in numbers]
    tsv = write("pairs.tsv", ["\t".join(pair) for pair in pairs])
    aligned = f"{write('s.txt', [s for s, _ in pairs])}:{write('t.txt', [t for _, t in pairs])}"
    for corpus in (tsv, aligned):
        opened = open_parallel(DataConfig(corpus=corpus))
        assert sorted((p.source, p.target) for s in opened.splits.values() for p in s) == sorted(pairs)


def test_a_carriage_return_within_a_line_is_a_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\rb\nc\r\nd\x0b\xe2\x80\xa8e\n")
    assert list(read_lines(path)) == ["a\rb", "c", "d\x0b\u2028e"]


def test_text_with_lone_carriage_returns_is_prepared_anew(tmp_path):
    """Earlier versions read such a file as one line: what they prepared must not be taken for this text."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "a.txt"
    path.write_bytes(b"one\rtwo\r" * 20)
    mac = open_corpus(DataConfig(corpus=str(path), documents="file"))
    path.write_bytes(b"one\ntwo\n" * 20)
    unix = open_corpus(DataConfig(corpus=str(path), documents="file"))
    texts = [[d.text for s in c.splits.values() for d in s] for c in (mac, unix)]
    assert texts[0] == texts[1]
    assert mac.fingerprint != unix.fingerprint


def test_a_byte_order_mark_is_taken_off_the_beginning_of_a_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffa\n\ufeffb\n", "utf-8")
    assert list(read_lines(path)) == ["a", "\ufeffb"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_bytes_that_are_no_text_are_named_by_their_place_in_the_file(tmp_path, end):
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["ab", "cd", ""]).encode() + b"e\xff" + end.encode())
    with pytest.raises(UsageError, match=rf"byte {4 + 2 * len(end) + 1} \(counted from 0\) is 0xff"):
        list(read_lines(path))
    path.write_bytes(end.join(["ab", "c\0", ""]).encode())
    with pytest.raises(UsageError, match="line 2 contains a NUL byte"):
        list(read_lines(path))


def test_a_gzip_file_that_was_cut_is_refused(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"ab\n" * 99)[:-9])
    with pytest.raises(UsageError, match="not a complete gzip file"):
        list(read_lines(path))
    with pytest.raises(UsageError, match="cannot read"):
        list(read_lines(tmp_path / "absent.txt"))


def test_records_have_their_line_numbers_and_are_objects(tmp_path):
    path = tmp_path / "a.jsonl"
    assert list(read_records(path, ['{"a": 1}', " ", "{}"])) == [
        (f"{path}, line 1", {"a": 1}),
        (f"{path}, line 3", {}),
    ]
    with pytest.raises(UsageError, match="line 2: expected an object of fields, not a int"):
        list(read_records(path, ["{}", "3"]))
