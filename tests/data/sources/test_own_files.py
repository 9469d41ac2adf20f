"""The user's own files: what a document is, which split it is in, and one clear line for every bad input."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerotollm.data.config import DataConfig
from zerotollm.data.find import why_missing
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import Corpus
from zerotollm.data.sources.splits import FEW
from zerotollm.errors import UsageError


def opened(path, **fields) -> Corpus:
    return open_corpus(DataConfig(corpus=str(path), **fields))


def texts(corpus: Corpus, *splits: str) -> list[str]:
    return [document.text for split in splits or corpus.splits for document in corpus.splits[split]]


def error_of(path, **fields) -> str:
    with pytest.raises(UsageError) as caught:
        opened(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_many(folder, count: int = 200) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {f"{i:03}.txt": f"Text number {i}.\n\nIts second paragraph.\n" for i in range(count)}
    for name, content in contents.items():
        (folder / name).write_text(content)
    return contents


# One file, split by position.


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=10).filter(str.strip))
def test_last_tenth_is_exactly_the_last_tenth(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "position.txt"
    path.write_text(text.removeprefix("\ufeff") + "x" * 10, encoding="utf-8", newline="")
    text = path.read_text("utf-8")
    corpus = opened(path, documents="file", validation_fraction=0.1, test_fraction=0.0)
    cut = len(text) * 9 // 10
    assert texts(corpus, "train") == [text[:cut]]
    assert texts(corpus, "validation") == [text[cut:]]
    assert not corpus.splits["test"]


def test_three_parts_by_position(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 10)
    corpus = opened(path, documents="file", validation_fraction=0.07, test_fraction=0.03)
    assert [len(text) for text in texts(corpus)] == [90, 7, 3]
    assert "".join(texts(corpus)) == "abcdefghij" * 10


def test_few_files_are_each_cut_by_position(tmp_path):
    write_many(tmp_path, FEW - 1)
    corpus = opened(tmp_path)
    assert {len(documents) for documents in corpus.splits.values()} == {FEW - 1}
    assert corpus.splits["train"][0].id == corpus.splits["test"][0].id == "000.txt"
    assert corpus.splits["train"][0].text.startswith("Text number 0.")


# Many documents, split by a hash of the text.


def test_a_file_is_a_document_and_splits_do_not_overlap(tmp_path):
    contents = write_many(tmp_path)
    corpus = opened(tmp_path)
    assert sorted(texts(corpus)) == sorted(contents.values())
    by_split = {split: set(texts(corpus, split)) for split in corpus.splits}
    assert len(set.union(*by_split.values())) == sum(map(len, by_split.values()))
    assert 3 <= len(by_split["validation"]) <= 20
    assert {document.id: document.text for s in corpus.splits.values() for document in s} == contents


def test_documents_keep_their_split_when_files_are_added(tmp_path):
    write_many(tmp_path, 100)
    before = {d.text: split for split, documents in opened(tmp_path).splits.items() for d in documents}
    write_many(tmp_path, 200)
    after = {d.text: split for split, documents in opened(tmp_path).splits.items() for d in documents}
    assert len(after) == 200
    assert all(after[text] == split for text, split in before.items())


@pytest.mark.parametrize("count", [FEW, FEW + 1, 30])
def test_validation_is_never_empty(tmp_path, count):
    write_many(tmp_path, count)
    corpus = opened(tmp_path, validation_fraction=0.001, test_fraction=0.0)
    assert len(corpus.splits["validation"]) == 1
    assert len(corpus.splits["train"]) == count - 1


def test_equal_texts_are_in_one_split(tmp_path):
    lines = "".join(json.dumps({"text": f"text {i % 50}"}) + "\n" for i in range(500))
    (tmp_path / "a.jsonl").write_text(lines)
    corpus = opened(tmp_path / "a.jsonl", validation_fraction=0.2)
    by_split = [set(texts(corpus, split)) for split in corpus.splits]
    assert sum(map(len, by_split)) == 50


# What a document is.


def test_jsonl_line_is_a_document(tmp_path):
    lines = "".join(json.dumps({"text": f"Line {i}:\nça va 🙂", "n": i}) + "\n\n" for i in range(50))
    path = tmp_path / "a.jsonl"
    path.write_text(lines)
    corpus = opened(path)
    assert sorted(texts(corpus)) == sorted(f"Line {i}:\nça va 🙂" for i in range(50))
    first = corpus.splits["train"][0]
    assert (first.id, first.metadata) == ("a.jsonl:1", {"file": "a.jsonl", "line": 1})


def test_paragraphs_when_asked_for(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("\n\n" + "".join(f"First {i}\nsecond\n \n\n" for i in range(40)) + "last, without an end")
    assert sorted(texts(opened(path, documents="paragraph"))) == sorted(
        [f"First {i}\nsecond" for i in range(40)] + ["last, without an end"]
    )


@pytest.mark.parametrize(("length", "documents"), [(40, 3), (1200, 50)])
def test_auto_cuts_one_file_only_into_long_paragraphs(tmp_path, length, documents):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{i} ".ljust(length, "x") for i in range(50)))
    assert len(texts(opened(path))) == documents  # 3: the parts of one text


@pytest.mark.parametrize("documents", ["auto", "file", "paragraph"])
@pytest.mark.parametrize("name", ["a.txt", "b.md", "c.jsonl"])
def test_gz_reads_as_what_is_in_it(tmp_path, name, documents):
    line = '{"text": "Number %d is here."}\n\n'
    content = "".join(line % i for i in range(60)).encode()
    (tmp_path / name).write_bytes(content)
    with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
        file.write(content)
    plain, packed = (opened(tmp_path / n, documents=documents) for n in (name, f"{name}.gz"))
    assert texts(plain) == texts(packed)
    assert texts(plain)


def test_windows_files_read_like_others(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfOne line.\r\nAnother.\r\n\r\nThird, with a lone \r inside.\r\n")
    assert "".join(texts(opened(path))) == "One line.\nAnother.\n\nThird, with a lone \r inside.\n"


def test_folder_and_glob_read_alike(tmp_path):
    write_many(tmp_path / "in" / "deep", 30)
    (tmp_path / "in" / ".hidden").mkdir()
    (tmp_path / "in" / ".hidden" / "a.txt").write_text("not read")
    (tmp_path / "in" / "picture.png").write_bytes(b"\0")
    (tmp_path / "in" / "empty.txt").write_text("\n")
    folder, pattern = opened(tmp_path / "in"), opened(tmp_path / "in" / "**" / "*.txt")
    assert texts(folder) == texts(pattern)
    assert len(texts(folder)) == 30


# The fingerprint.


def test_fingerprint_follows_content_and_not_place(tmp_path):
    write_many(tmp_path / "a")
    write_many(tmp_path / "b")
    first = opened(tmp_path / "a").fingerprint
    assert first == opened(tmp_path / "a").fingerprint == opened(tmp_path / "b").fingerprint
    assert first != opened(tmp_path / "a", test_fraction=0.06).fingerprint
    assert first != opened(tmp_path / "a", documents="paragraph").fingerprint
    (tmp_path / "b" / "000.txt").write_text("Text number 0!\n\nIts second paragraph.\n")
    assert first != opened(tmp_path / "b").fingerprint


# Bad input.


def test_missing_paths(tmp_path, monkeypatch):
    assert "is not found" in error_of(tmp_path / "nothing.txt")
    assert "is not found" in error_of(tmp_path / "no folder" / "a")
    assert "cannot be read: file name too long" in error_of(tmp_path / ("a" * 5000))
    assert "no corpus and no file is called ''" in error_of("")
    (tmp_path / "empty").mkdir()
    assert "holds no text" in error_of(tmp_path / "empty")
    assert "matches no text" in error_of(tmp_path / "*.txt")
    (tmp_path / "a.pdf").write_text("x")
    assert "suffix" in error_of(tmp_path / "a.pdf")
    assert "1 paths but no text" in error_of(tmp_path / "*.pdf")
    monkeypatch.chdir(tmp_path)
    assert f"here/a.txt is not found in the working directory {tmp_path}; give" in error_of("here/a.txt")
    assert "did you mean bible-web" in error_of("bibleweb")


def test_a_path_that_may_not_be_read_is_said_to_be_there(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert why_missing(tmp_path / "a") == "may not be read: permission is denied"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert "is empty" in error_of(tmp_path / name)


def test_binary_and_other_encodings(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"text\nmore\0text")
    assert "line 2 contains a NUL byte" in error_of(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("text in UTF-16", encoding="utf-16")
    assert "UTF-16" in error_of(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("dix ans après, à Paris".encode("latin-1"))
    for documents in ("file", "paragraph"):
        assert "byte 11 (counted from 0) is 0xe8" in error_of(tmp_path / "a.txt", documents=documents)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe8"}\n')
    assert "byte 24" in error_of(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', "line 2: not JSON (Expecting ',' delimiter, column"),
        ('{"txt": "a", "id": 1}', "line 2: field 'text' is missing; expected a text; fields: txt, id"),
        ('{"text": 5}', "line 2: field 'text' is 5; expected a text; fields: text"),
        ('["text"]', "line 2: expected an object of fields, not a list"),
        ('{"text": "\\ud800"}', "line 2, field 'text': half of a surrogate pair"),
    ],
)
def test_broken_jsonl(tmp_path, line, expected):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    assert f"a.jsonl, {expected}" in error_of(tmp_path / "a.jsonl")


def test_broken_gz(tmp_path):
    whole = gzip.compress(b"".join(b"%d text\n" % (i * i) for i in range(9999)))
    for content in (b"not gzip", whole[: len(whole) // 2], whole[:500] + b"\xff" * 50 + whole[550:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        assert "is not a complete gzip file" in error_of(tmp_path / "a.txt.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    assert "Permission denied" in error_of(tmp_path / "a.txt")


def test_too_short_and_impossible_fractions(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    assert "too short" in error_of(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("long enough " * 100)
    for fields in ({"validation_fraction": 0.0}, {"test_fraction": 0.95}, {"test_fraction": -0.1}):
        assert "validation_fraction" in error_of(tmp_path / "a.txt", **fields)
