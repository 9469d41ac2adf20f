"""Tokens decode to the corpus, are prepared once for equal text and settings, and are rebuilt after damage."""

import re
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.lazy_sequence import in_groups
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.tokens import cache, sentencepiece, text
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.data.tokens.text import prepare
from zerotollm.errors import RunError, UsageError

SETTINGS = TokenizerConfig(vocab_size=300)
STORIES = [f"Story {n} of the sea.\nThe {n} kings saw the river; café {n * n}.\n" for n in range(60)]


@pytest.fixture
def data(tmp_path) -> DataConfig:
    folder = tmp_path / "stories"
    folder.mkdir()
    for number, story in enumerate(STORIES):
        (folder / f"{number}.txt").write_text(story, "utf-8")
    return DataConfig(str(folder), dir=str(tmp_path / "cache"), validation_fraction=0.2, test_fraction=0.1)


def prepared_folder(data: DataConfig) -> Path:
    (folder,) = (path for path in Path(data.dir, "tokens").iterdir() if not path.name.startswith("."))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_are_the_documents_each_after_a_bos(data):
    prepared, corpus = prepare(data, SETTINGS), open_corpus(data)
    assert sum(map(len, corpus.splits.values())) == len(STORIES)
    for split, documents in corpus.splits.items():
        tokenized = prepared.splits[split]
        assert tokenized.tokens_N.dtype == np.uint16
        assert len(tokenized.document_starts_D) == len(documents) > 0
        assert tokenized.num_bytes == sum(len(document.text.encode()) for document in documents)
        parts = np.split(tokenized.tokens_N, tokenized.document_starts_D)
        assert len(parts[0]) == 0, "nothing lies before the first document"
        for part, document in zip(parts[1:], documents, strict=True):
            assert part[0] == Tokenizer.bos_id
            assert Tokenizer.bos_id not in part[1:]
            assert prepared.tokenizer.decode(part) == document.text


def test_the_tokenizer_sees_the_training_split_only(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc " * 225 + "xyz " * 25, "utf-8")
    data = DataConfig(str(path), str(tmp_path), "file", validation_fraction=0.1, test_fraction=0)
    prepared = prepare(data, TokenizerConfig("char", 100, byte_fallback=False))
    assert {prepared.tokenizer.piece(i) for i in range(4, prepared.tokenizer.vocab_size)} == set("\nabc▁")
    assert (prepared.splits["validation"].tokens_N == Tokenizer.unk_id).sum() == 25, "one for each xyz"


def test_a_split_without_documents_has_no_tokens(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc " * 100, "utf-8")
    data = DataConfig(str(path), str(tmp_path), "file", validation_fraction=0.1, test_fraction=0)
    for _ in range(2):
        test = prepare(data, TokenizerConfig("char", 300)).splits["test"]
        assert (len(test.tokens_N), len(test.document_starts_D), test.num_bytes) == (0, 0, 0)


def test_a_large_corpus_is_written_in_groups(data, monkeypatch):
    prepare(data, SETTINGS)
    whole = contents(prepared_folder(data))
    shutil.rmtree(prepared_folder(data))
    monkeypatch.setattr(text, "GROUP", 100)
    prepare(data, SETTINGS)
    assert contents(prepared_folder(data)) == whole


def test_ids_of_a_large_vocabulary_take_four_bytes(data, monkeypatch):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    def train(*arguments) -> Tokenizer:
        proto = ModelProto.FromString(tokens_train(*arguments).model)
        for number in range(2**16):
            proto.pieces.add(piece=f"#{number}#", score=-1e6)
        proto.pieces.add(piece="▁kings", score=1e6)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Tokenizer(proto.SerializeToString())

    tokens_train = sentencepiece.train_tokenizer
    monkeypatch.setattr(sentencepiece, "train_tokenizer", train)
    prepared = prepare(data, TokenizerConfig("unigram", 290))
    train_split = prepared.splits["train"]
    assert train_split.tokens_N.dtype == np.uint32
    assert train_split.tokens_N.max() == prepared.tokenizer.vocab_size - 1 > 2**16
    assert prepared.tokenizer.decode(train_split.tokens_N).startswith("Story")


# --- made once, for all who agree


def test_a_second_start_makes_nothing(data, monkeypatch):
    first = prepare(data, SETTINGS)
    monkeypatch.setattr(sentencepiece, "train_tokenizer", None)
    second = prepare(data, SETTINGS)
    assert second.tokenizer == first.tokenizer
    np.testing.assert_array_equal(second.splits["train"].tokens_N, first.splits["train"].tokens_N)


def test_only_equal_text_and_settings_share_tokens(data):
    folder = Path(data.dir, "tokens")
    count = lambda: len([path for path in folder.iterdir() if not path.name.startswith(".")])  # noqa: E731
    prepare(data, SETTINGS)
    prepare(DataConfig(**vars(data) | {"context": 7, "batch_size": 3}), SETTINGS)
    assert count() == 1
    prepare(data, TokenizerConfig(vocab_size=301))
    assert count() == 2
    prepare(data, TokenizerConfig(vocab_size=300, normalization="nfc"))
    assert count() == 3
    Path(data.corpus, "60.txt").write_text("Another story of the sea.\n", "utf-8")
    prepare(data, SETTINGS)
    assert count() == 4


def test_a_start_does_not_import_tensorflow_datasets(tmp_path):
    script = (
        "import sys\nfrom zerotollm.data.tokens.text import *\n"
        f"prepared = prepare(DataConfig(dir={str(tmp_path)!r}), TokenizerConfig())\n"
        "print('tensorflow_datasets' in sys.modules, len(prepared.splits['train'].tokens_N) > 500_000)"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [out.stdout.split() for out in outputs] == [["False", "True"]] * 2
    assert [out.stderr for out in outputs] == ["", ""]


def test_several_processes_prepare_at_once(data):
    script = (
        "from zerotollm.data.tokens.text import *\n"
        f"data, settings = DataConfig(**{vars(data)!r}), TokenizerConfig(vocab_size=300)\n"
        "print(sum(map(int, prepare(data, settings).splits['train'].tokens_N)))"
    )
    run = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for damage in (False, True):
        if damage:
            (prepared_folder(data) / "train.tokens").write_bytes(b"")
        processes = [run() for _ in range(3)]
        results = [process.communicate() for process in processes]
        assert {error for _, error in results} == {""}
        assert len({out for out, _ in results}) == 1
        assert sorted(path.name for path in prepared_folder(data).iterdir())[0] == "manifest"


# --- damage and full disks


@pytest.mark.parametrize("name", ["train.tokens", "test.starts", "tokenizer.model", "manifest"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_damaged_tokens_are_rebuilt(data, name, damage):
    prepare(data, SETTINGS)
    whole = contents(prepared_folder(data))
    path = prepared_folder(data) / name
    if damage == "cut":
        path.write_bytes(whole[name][:-3])
    elif damage == "changed":
        middle = len(whole[name]) // 2
        path.write_bytes(whole[name][:middle] + bytes([whole[name][middle] ^ 1]) + whole[name][middle + 1 :])
    else:
        path.unlink()
    prepare(data, SETTINGS)
    assert contents(prepared_folder(data)) == whole


def test_a_large_file_is_not_read_through_at_every_start(data, monkeypatch):
    prepare(data, SETTINGS)
    monkeypatch.setattr(cache, "CHECKED", 0)
    monkeypatch.setattr(cache, "checksum", None)
    prepare(data, SETTINGS)


def test_a_full_disk_is_an_error_of_one_line_and_leaves_nothing(data):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"--data\.dir|make room"):
            prepare(data, SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in Path(data.dir, "tokens").iterdir() if path.is_dir()] == []
    prepare(data, SETTINGS)


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--data\.dir"):
        prepare(DataConfig(data.corpus, dir=str(tmp_path / "file")), SETTINGS)


def test_a_vocabulary_that_does_not_suit_the_text_leaves_nothing(data):
    with pytest.raises(UsageError, match="at most"):
        prepare(data, TokenizerConfig(vocab_size=50_000))
    assert [path.name for path in Path(data.dir, "tokens").iterdir() if path.is_dir()] == []


def test_a_folder_is_named_after_the_corpus_and_by_what_made_it(tmp_path):
    data = DataConfig(dir=str(tmp_path))
    name = lambda corpus, *described: cache.token_folder(data, corpus, list(described)).name  # noqa: E731
    assert re.fullmatch(r"My-text-v2.txt-[0-9a-f]{16}", name("a folder/My text: v2.txt", 1))
    assert name("天", 1).startswith("corpus-")
    assert name("x" * 99, 1).count("x") == 40
    assert name("a", 1, 2) != name("a", 2, 1)
    assert name("a", {"b": 1, "c": 2}) == name("a", {"c": 2, "b": 1})


def test_the_key_changes_with_tokens_and_their_bytes():
    unigram, bpe = (sentencepiece.tokenizer_key(TokenizerConfig(kind, 300)) for kind in ("unigram", "bpe"))
    assert unigram == asdict(TokenizerConfig("unigram", 300)) | {"score_steps": 64}
    assert bpe == asdict(TokenizerConfig("bpe", 300))
    lossy = TokenizerConfig("char", 300, byte_fallback=False)
    assert sentencepiece.tokenizer_key(lossy) == asdict(lossy) | {"bytes": "given back"}


def test_the_size_of_long_documents_is_estimated_from_their_beginnings(data, monkeypatch):
    prepared, corpus = prepare(data, SETTINGS), open_corpus(data)
    files = [path for path in prepared_folder(data).iterdir() if path.suffix in (".tokens", ".starts")]
    written = sum(path.stat().st_size for path in files)
    for characters in (20, 4000):
        monkeypatch.setattr(text, "GROUP", text.SAMPLED * characters)
        expected = text.estimate_bytes(corpus, prepared.tokenizer)
        assert expected == pytest.approx(written, rel=0.25), characters


def test_decoded_bytes_never_exceed_the_text():
    lengths = np.array([0, 1, 3])
    ids = [np.array([1, 2]), np.array([0, 1]), np.array([2, 2])]
    assert text.decoded_bytes(["abcd", "ab", "abc"], ids, lengths).tolist() == [4, 1, 3]


def test_the_characters_tokenized_at_once_are_bounded(data, monkeypatch):
    monkeypatch.setattr(text, "GROUP", 640)
    assert [len(group) for group in in_groups(["x" * 320] * 5, len, 640)] == [2, 2, 1]
    prepared, corpus, read = prepare(data, SETTINGS), open_corpus(data), []

    def encode_batch(texts):
        read.append(sum(map(len, texts)))
        return prepared.tokenizer.encode_batch(texts)

    tokenizer = SimpleNamespace(encode_batch=encode_batch, vocab_size=300)
    text.estimate_bytes(corpus, tokenizer)
    assert 0 < max(read) <= 640


def test_the_size_of_a_few_documents_is_exact_except_for_their_bos(data):
    prepared, corpus = prepare(data, SETTINGS), open_corpus(data)
    documents = sum(map(len, corpus.splits.values()))
    written = sum(2 * len(split.tokens_N) for split in prepared.splits.values()) + 8 * documents
    assert text.estimate_bytes(corpus, prepared.tokenizer) == written - 2 * documents
