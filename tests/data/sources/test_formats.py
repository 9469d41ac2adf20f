"""Every format that is read: the same texts from each, compressed or not, and one clear line for every broken file."""

import gzip
import io
import json
import lzma
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from zerotollm.data.config import DataConfig
from zerotollm.data.find import SUFFIXES
from zerotollm.data.sources import compression
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.examples import open_examples
from zerotollm.errors import UsageError

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstandard.compress(content[:99]) + zstandard.compress(content[99:]),  # two frames
}
TEXTS = [f'Text "{i}", ça va 🙂,\nwith a second line.\tEnd' for i in range(50)]
PAGE = """<!DOCTYPE html><html><head><title>no</title><style>p {color: red}</style></head><body><nav>
 Home</nav><h1>One &amp; two</h1><script>var x = "<p>no</p>";</script><p>A   <b>bold</b>
word<br>next</p><pre>a  b
 c</pre><ul><li>x<li>y</ul></body></html>"""
PAGE_TEXT = "Home\n\nOne & two\n\nA bold word\nnext\n\na  b\n c\n\nx\n\ny\n"


def table(field: str, texts: list, **options) -> bytes:
    file = io.BytesIO()
    columns = {"id": list(range(len(texts))), field: texts, "other": [{"a": 1}] * len(texts)}
    pq.write_table(pa.table(columns), file, row_group_size=7, **options)
    return file.getvalue()


def rows(field: str, texts: list) -> list[dict]:
    return [{"id": i, field: text} for i, text in enumerate(texts)]


def csv(field: str, texts: list[str]) -> bytes:
    lines = ['"{}",{}'.format(text.replace('"', '""'), i) for i, text in enumerate(texts)]
    return "\r\n".join([f"{field},id", *lines, ""]).encode()


CONTENTS = {
    ".jsonl": lambda field, texts: "".join(json.dumps(row) + "\n" for row in rows(field, texts)).encode(),
    ".json": lambda field, texts: json.dumps(rows(field, texts), indent=1).encode(),
    ".csv": csv,
    ".parquet": table,
}


def opened(path: Path, **fields):
    return open_corpus(DataConfig(corpus=str(path), **fields))


def texts(path: Path, **fields) -> list[str]:
    corpus = opened(path, **fields)
    return [document.text for documents in corpus.splits.values() for document in documents]


def error_of(path: Path, **fields) -> str:
    with pytest.raises(UsageError) as caught:
        texts(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_table_has_the_same_texts(tmp_path, suffix, packed):
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(PACK[packed](CONTENTS[suffix]("text", TEXTS)))
    corpus = opened(path)
    assert sorted(text for split in corpus.splits.values() for text in (d.text for d in split)) == sorted(
        TEXTS
    )
    validation = corpus.splits["validation"]
    assert [d.text for d in reversed(validation)] == [d.text for d in validation][::-1], "in any order"
    reference = tmp_path / "reference.jsonl"
    reference.write_bytes(CONTENTS[".jsonl"]("text", TEXTS))
    assert {d.text for d in validation} == {d.text for d in opened(reference).splits["validation"]}


def test_tsv_has_no_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f'"{i} says\t{i % 2}\n' for i in range(30)))
    assert sorted(texts(tmp_path / "a.tsv")) == sorted(f'"{i} says' for i in range(30))


def test_a_row_ends_only_at_the_end_of_a_line(tmp_path):
    """Python's splitlines also splits at these, which the text of the web has."""
    odd = [f"{i} a{mark}b" for i in range(10) for mark in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    (tmp_path / "a.csv").write_bytes(csv("text", odd))
    assert sorted(texts(tmp_path / "a.csv")) == sorted(odd)
    (tmp_path / "a.tsv").write_bytes(
        "".join(f"{row}\n" for row in ["text\tid", *(f"{t}\t1" for t in odd)]).encode()
    )
    assert sorted(texts(tmp_path / "a.tsv")) == sorted(odd)


@pytest.mark.parametrize("packed", PACK)
def test_pages_and_books(tmp_path, packed):
    page, book = tmp_path / f"a.html{packed}", tmp_path / f"b.epub{packed}"
    page.write_bytes(PACK[packed](PAGE.encode()))
    assert "".join(texts(page, test_fraction=0.0)) == PAGE_TEXT
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("META-INF/container.xml", '<c xmlns="u"><rootfile full-path="in/book.opf"/></c>')
        items = "".join(
            f'<item id="{i}" href="{i}%20x.xhtml" media-type="application/xhtml+xml"/>' for i in "ab"
        )
        spine = '<itemref idref="b"/><itemref idref="a"/>'
        archive.writestr(
            "in/book.opf", f'<p xmlns="u"><manifest>{items}</manifest><spine>{spine}</spine></p>'
        )
        archive.writestr("in/a x.xhtml", "<body><p>The end.</p></body>")
        archive.writestr("in/b x.xhtml", PAGE)
    book.write_bytes(PACK[packed](file.getvalue()))
    assert "".join(texts(book)) == f"{PAGE_TEXT}\nThe end.\n"
    whole = file.getvalue()
    book.write_bytes(PACK[packed](whole[:60] + whole[91:]))  # whose directory begins before the file
    assert "is not a complete EPUB" in error_of(book)
    book.write_bytes(PACK[packed](whole[:200]))
    assert "b.epub" in error_of(book)
    assert "is not a complete EPUB" in error_of(book)


def test_a_marked_section_of_any_name_is_a_comment(tmp_path):
    (tmp_path / "a.html").write_text("<p>One</p><![foo]><p>two.</p>")
    assert "".join(texts(tmp_path / "a.html", test_fraction=0.0)) == "One\n\ntwo.\n"


def test_front_matter_of_markdown_is_dropped_and_a_rule_is_not(tmp_path):
    body = "---\n\nIt begins.\n\n---\n\nIt ends here.\n"
    for name, content in (("a.md", "---\ntitle: x\ntags: [a]\n---\n" + body), ("b.md", body), ("c.md", body)):
        (tmp_path / name).write_text(content)
    assert "".join(texts(tmp_path / "a.md")) == "".join(texts(tmp_path / "b.md")) == body
    assert opened(tmp_path / "b.md").splits["train"][0].metadata["line"] == 1


def test_a_clone_of_a_data_set_is_its_tables(tmp_path, caplog):
    for name in ("README.md", "LICENSE", "dataset_infos.json", "notes.csv"):
        (tmp_path / name).write_text("---\nlicense: mit\n---\nAbout these data")
    (tmp_path / "data").mkdir()
    for number in range(2):
        path = tmp_path / "data" / f"train-{number:05}-of-00002.parquet"
        path.write_bytes(table("story", TEXTS[number::2]))
    assert sorted(texts(tmp_path)) == sorted(TEXTS)
    assert "the field 'story' (--data.field)" in caplog.text
    assert "1 README.md" in caplog.text


def test_the_field_is_chosen_once_and_may_be_named(tmp_path):
    lines = [{"content": f"c {i}", "body": f"b {i}", "n": i} for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sorted(texts(path)) == sorted(f"c {i}" for i in range(30))
    assert sorted(texts(path, field="body")) == sorted(f"b {i}" for i in range(30))
    assert opened(path).fingerprint != opened(path, field="body").fingerprint
    assert "has no field 'words'; set --data.field to one of its fields: content, body, n" in error_of(
        path, field="words"
    )
    assert "a.jsonl, line 1: field 'n' is 0; expected a text" in error_of(path, field="n")


def test_of_a_wide_table_one_column_is_read(tmp_path, monkeypatch):
    wide = {f"c{i}": pa.nulls(30) for i in range(10_000)} | {"text": pa.array(TEXTS[:30])}
    pq.write_table(pa.table(wide), tmp_path / "a.parquet")
    asked = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda *a, columns, **o: asked.append(columns) or read(*a, columns=columns, **o),
    )
    assert sorted(texts(tmp_path / "a.parquet")) == sorted(TEXTS[:30])
    assert {tuple(columns) for columns in asked} == {("text",)}
    assert ", c18, c19 and 9,981 more; " in error_of(tmp_path / "a.parquet", field="x")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["a"], ["b"]], "row 1: field 'text' is ['a']; expected a text"),
        (["a", None, "b"], "row 2: field 'text' is empty; expected a text"),
        ([1, 2], "row 1: field 'text' is 1; expected a text"),
        ([b"\xff", b"a"], r"row 1: field 'text' is b'\xff'; expected a text"),
    ],
)
def test_columns_that_are_not_text(tmp_path, values, expected):
    (tmp_path / "a.parquet").write_bytes(table("text", values))
    assert expected in error_of(tmp_path / "a.parquet")


def test_broken_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    content = table("text", [text * 50 for text in TEXTS], compression="snappy", use_dictionary=False)
    path.write_bytes(content[:-100])
    assert "a.parquet is not a complete Parquet file" in error_of(path)
    path.write_bytes(b"PAR1")
    assert "a.parquet is not a complete Parquet file" in error_of(path)
    name = content.index(
        b"text", len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    )  # in the footer
    path.write_bytes(content[:name] + b"\xff" + content[name + 1 :])
    assert "a.parquet is not a complete Parquet file" in error_of(path)
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    start = metadata.row_group(3).column(1).data_page_offset
    path.write_bytes(content[:start] + b"\xff" * 200 + content[start + 200 :])
    assert "a.parquet, row group 4 of 8, is damaged" in error_of(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,id\na,1\n"b,2\nc,3\n', "line 3: a quote opens in this row and never closes"),
        ("text,id\na,1\nb,2,3\n", "line 3: 3 fields, and the header names 2"),
        ('text,id\na,1\n"b"x,2\n', "line 3: ',' expected after '\"'"),
        ("text,text\na,1\n", "the first row names a field twice"),
        (
            "a\nb\n",
            "has no field called 'text', 'content', 'story'; set --data.field to one of its fields: a",
        ),
    ],
)
def test_broken_csv(tmp_path, content, expected):
    (tmp_path / "a.csv").write_text(content)
    assert expected in error_of(tmp_path / "a.csv")


def test_an_open_quote_ends_before_memory_does(tmp_path, monkeypatch):
    monkeypatch.setattr("zerotollm.data.sources.records.LONGEST", 1000)
    (tmp_path / "a.csv").write_text('text,id\na,1\n"b,2\n' + "c,3\n" * 1000)
    assert "line 3: a quote opens in this row and never closes" in error_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"}, 3]', "object 2: expected an object of fields, not a int"),
        (
            '{"text": "a"}\n{"text": "b"}',
            "line 2: not JSON (Extra data, column 1); one object in every line is .jsonl",
        ),
        ("[" * 100_000, "not JSON that can be read"),
    ],
)
def test_broken_json(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    assert expected in error_of(tmp_path / "a.json")


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_cut_and_damaged_files(tmp_path, packed):
    path = tmp_path / f"a.jsonl{packed}"
    whole = PACK[packed](CONTENTS[".jsonl"]("text", [text + str(i**9) for i, text in enumerate(TEXTS)]))
    for content in (
        whole[: len(whole) // 2],
        whole[:-5],
        b"text" * 20,
        whole[:60] + b"\0" * 40 + whole[100:],
    ):
        path.write_bytes(content)
        assert f"{path} is not a complete" in error_of(path)


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_a_file_that_explodes_is_refused_unless_it_is_trusted(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(compression, "FREE", 100_000)
    path = tmp_path / f"a.txt{packed}"
    content = b"All work and no play.\n" * 50_000
    path.write_bytes(PACK[packed](content))
    assert "raise --data.ratio if the file is trusted" in error_of(path)
    assert "".join(texts(path, ratio=1e5)).encode() == content


def test_broken_rows_may_be_left_out(tmp_path, caplog):
    path, good = tmp_path / "a.jsonl", [json.dumps({"text": text}) for text in TEXTS]
    bad = ['{"text": "cut', '{"text": null}', '{"text": "\\ud800"}', '{"other": 1}', "\xff"]
    path.write_bytes("\n".join(good + bad).encode("latin-1"))
    assert "line 51: not JSON" in error_of(path)
    assert "5 of 55 rows" in error_of(path, tolerate=0.09)
    assert sorted(texts(path, tolerate=0.1)) == sorted(TEXTS)
    (line,) = {record.getMessage() for record in caplog.records if "left out" in record.getMessage()}
    assert "left out 5 of 55 rows" in line
    assert "line 51: not JSON" in line
    assert line.endswith("and 2 more")


@pytest.mark.parametrize("suffix", CONTENTS)
def test_labels_may_be_numbers_in_every_table(tmp_path, suffix):
    records = [{"text": f"number {i}", "label": i % 3} for i in range(40)]
    content = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in records),
        ".json": json.dumps(records),
        ".csv": "label,text\n" + "".join(f"{row['label']},{row['text']}\n" for row in records),
    }
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text(content[suffix])
    data = DataConfig(corpus=str(path))
    assert open_examples(data, "label").labels == ("0", "1", "2")
    with pytest.raises(UsageError, match=r"field 'body' is missing"):
        open_examples(replace(data, field="body"), "label")


def test_every_suffix_is_documented():
    text = (Path(__file__).parents[3] / "zerotollm" / "data" / "config.py").read_text("utf-8")
    assert all(suffix in text for suffix in (*SUFFIXES, *PACK))


def test_files_with_different_fields_have_advice_that_works(tmp_path):
    """It named a field of one file, and then one of the other, in turn."""

    def write(name: str, field: str) -> None:
        rows = [{field: f"{name}: the sea and the sky, {number}"} for number in range(30)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("a.jsonl", "body")
    write("b.jsonl", "text")
    corpus = f"{tmp_path}/a.jsonl + {tmp_path}/b.jsonl"
    for field in ("", "body", "text"):
        with pytest.raises(UsageError, match=r"name the text 'text' in each, without --data.field"):
            open_corpus(DataConfig(corpus=corpus, field=field, dir=str(tmp_path / "data")))
    write("a.jsonl", "text")
    assert len(open_corpus(DataConfig(corpus=corpus, dir=str(tmp_path / "data"))).splits["train"])
