"""Options of the corpus, its batches and the tokenizer. No heavy imports: the command line reads this file."""

import os
import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Literal

from zerotollm.fields import ADDED, INT32_MAX, Bounds, FractionBelowOne, PositiveFloat, PositiveInt

PACKED = r"(\.gz|\.zst|\.xz)?"  # suffixes of compressed files, as a regular expression

_TRAILING_SLASH = re.compile(r"(?<=[^/\s])/+(?=$| \+ )")  # also within a mixture


@dataclass(frozen=True)
class DataConfig:
    """A corpus and the shape of its batches."""

    corpus: str = "bible-web"
    """text: bible-VERSION, shakespeare, sotu (sotu:since=1947), tfds:NAME, hf:OWNER/NAME, or a path, folder or glob of
    .txt, .md, .html, .epub, .jsonl, .json, .csv, .tsv, .parquet (each also .gz, .zst, .xz); or a mixture with
    weights: A*2 + B + C*0.5;
    pairs to translate: bible-A:bible-B, SOURCE.txt:TARGET.txt (several sources: A+B:TARGET), PAIRS.tsv, tfds:NAME;
    completions: a .jsonl of prompt and completion or of messages, chitchat, or pairs; labels: a .jsonl of text and
    label (text or whole number), genre:bible-A, or version:bible-A+bible-B; for .jsonl also .json, .csv, .parquet"""
    validation: str = ""
    """own files of pairs, completions or labels: validation files, in the form of corpus; empty: hold out a fraction of
    the corpus"""
    test: str = ""
    """own files of pairs, completions or labels: files for the final test"""
    extra: str = ""
    """own files of pairs: Bible versions as in bible-kjv+bible-asv:bible-bbe. Where a training target is a verse of the
    last version, that verse of the others becomes a further source. Held-out targets get no further sources"""
    extra_steps: int = dataclass_field(default=0, metadata=ADDED)
    """pairs: the first training steps, which read data.extra too; later steps read the corpus alone. 0: all steps"""
    old: str = dataclass_field(default="", metadata=ADDED)
    """plain text: the corpus of the pretrained model; the loss on it is measured before and after training"""
    replay: FractionBelowOne = dataclass_field(default=0.0, metadata=ADDED)
    """fraction of the steps that read data.old"""
    reverse: bool = False
    """pairs: translate from target to source"""
    dir: str = ""
    """folder for prepared data, tokenizers and tokens; empty: $ZEROTOLLM_DATA, else ~/.cache/zerotollm"""
    documents: Literal["auto", "file", "paragraph"] = "auto"
    """own files: what one document is. auto: a paragraph if a single file has at least 20 long ones, else a file"""
    field: str = dataclass_field(default="", metadata=ADDED)
    """own records (.jsonl, .json, .csv, .tsv, .parquet): the field with the text; empty: text, else content, else
    story"""
    tolerate: FractionBelowOne = dataclass_field(default=0.0, metadata=ADDED)
    """own files: share of the lines or rows that may be broken; those are left out, counted and listed"""
    ratio: PositiveFloat = dataclass_field(default=100.0, metadata=ADDED)
    """own compressed files: the most bytes of content for each compressed byte, against files that fill the memory"""
    validation_fraction: FractionBelowOne = 0.05
    """own files, and hf and tfds sets without a validation split: fraction of the text held out for validation"""
    test_fraction: FractionBelowOne = 0.05
    """own files, and hf and tfds sets without a test split: fraction of the text held out for the final test"""
    context: PositiveInt = 256
    """tokens in a window; for pairs, the most tokens in a source or a target: longer pairs are dropped and counted"""
    batch_size: PositiveInt = 4
    """windows per step, over all processes and micro-batches; for pairs, the token budget of a step is batch_size x
    context"""
    buckets: PositiveInt = 4
    """pairs: the most widths to which batches are padded. Each width compiles one program; few widths waste padding"""
    document_mask: bool = False
    """attention stays within the token's own document"""

    def __post_init__(self) -> None:
        """Take the slash from the end of a folder's name: with and without it, a corpus is the same."""
        for name in ("corpus", "old"):
            corpus = getattr(self, name)
            if isinstance(corpus, str):  # anything else is refused where all fields are checked
                object.__setattr__(self, name, _TRAILING_SLASH.sub("", corpus))


def is_tsv(corpus: str) -> bool:
    """Return whether a corpus is one file of source TAB target, maybe compressed."""
    return re.search(rf"\.tsv{PACKED}$", corpus.lower()) is not None and (
        ":" not in corpus or is_file(corpus)
    )


def is_file(name: str) -> bool:
    """Return whether a file of exactly this name exists: then `:` and `+` in it separate nothing."""
    return os.path.isfile(os.path.expanduser(name))


def names_pairs(corpus: str) -> bool:
    """Return whether a corpus names pairs: SOURCE:TARGET or PAIRS.tsv, but no folder and no file of records."""
    if corpus.startswith("hf:"):
        return False
    if re.search(rf"\.(jsonl|json|csv|parquet){PACKED}$", corpus.lower()) or os.path.isdir(
        os.path.expanduser(corpus)
    ):
        return False
    return ":" in corpus or is_tsv(corpus)


@dataclass(frozen=True)
class TokenizerConfig:
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226)."""

    kind: Literal["bpe", "unigram", "char", "pretrained"] = "bpe"
    """bpe (Sennrich 2016, arXiv:1508.07909), unigram (Kudo 2018, arXiv:1804.10959) or single characters; pretrained:
    the tokenizer of an imported model, from this run directory or from train.start_from"""
    vocab_size: Annotated[int, Bounds(5, INT32_MAX)] = 4096
    """pieces, special and byte pieces included; for char an upper limit"""
    byte_fallback: bool = True
    """encode unseen characters as their UTF-8 bytes: any text round-trips"""
    normalization: Literal["identity", "nfc", "nfkc"] = "identity"
    """Unicode normalization before training and encoding; identity keeps every text exactly"""
