"""What is read, and how it is cut into batches. No heavy imports: the command line reads this file."""

import os
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """A corpus and the shape of its batches."""

    corpus: str = "bible-web"
    """bible-VERSION, shakespeare, tfds:NAME, or a path, folder or glob of .txt, .md, .jsonl (each also .gz); pairs
    to translate: bible-A:bible-B, SOURCE.txt:TARGET.txt (several sources: A+B:TARGET), PAIRS.tsv, tfds:NAME;
    completions: a .jsonl of prompt and completion or of messages, chitchat, or pairs; labels: a .jsonl of text and
    label, genre:bible-A, or version:bible-A+bible-B"""
    validation: str = ""
    """pairs, completions and labels in own files only: files to validate with, written as the corpus is; empty: a
    fraction of it"""
    test: str = ""
    """pairs, completions and labels in own files only: files for the final test"""
    extra: str = ""
    """pairs in own files only: Bible versions as in bible-kjv+bible-asv:bible-bbe; where a training target is a verse
    of the last, that verse of the others is trained on as a further source. Held-out targets get none"""
    extra_steps: int = 0
    """pairs only: training steps that read data.extra too, the first ones; after them the corpus is alone. 0: all"""
    old: str = ""
    """plain text only: a corpus that the model has learned before and is measured on too, before and after"""
    replay: float = 0.0
    """share of the steps that read the old corpus again"""
    reverse: bool = False
    """pairs only: translate from target to source"""
    dir: str = ""
    """where prepared data, tokenizers and tokens are kept; empty: $ZEROTOLLM_DATA, else ~/.cache/zerotollm"""
    documents: Literal["auto", "file", "paragraph"] = "auto"
    """own files only: what separates documents. auto: the file, or blank lines in one file of 20 long paragraphs"""
    validation_fraction: float = 0.05
    """own files, and tfds sets without such a split: share of the text kept for validation"""
    test_fraction: float = 0.05
    """own files, and tfds sets without such a split: share of the text kept for the final test"""
    context: int = 256
    """tokens in a window; of pairs: most tokens in a source or a target, longer ones are dropped and counted"""
    batch_size: int = 4
    """windows in a step, over all processes and micro-batches; of pairs: so many of the longest, and of shorter ones
    as many more as have no more tokens"""
    buckets: int = 4
    """pairs only: widths at most that batches are padded to; each is a program to compile, few waste padding"""
    document_mask: bool = False
    """attention sees only the tokens of its own document"""


def is_tsv(corpus: str) -> bool:
    """Whether a corpus is written as one file of source TAB target, also .gz."""
    return re.search(r"\.tsv(\.gz)?$", corpus.lower()) is not None and (":" not in corpus or is_file(corpus))


def is_file(name: str) -> bool:
    """Whether a file exists as it is written: then no `:` or `+` in it separates anything."""
    return os.path.isfile(os.path.expanduser(name))


def names_pairs(corpus: str) -> bool:
    """Whether a corpus is written as pairs, SOURCE:TARGET or PAIRS.tsv; never a folder, nor what ends in .jsonl."""
    if re.search(r"\.jsonl(\.gz)?$", corpus.lower()) or os.path.isdir(os.path.expanduser(corpus)):
        return False
    return ":" in corpus or is_tsv(corpus)


@dataclass(frozen=True)
class TokenizerConfig:
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226)."""

    kind: Literal["bpe", "unigram", "char", "pretrained"] = "bpe"
    """bpe (Sennrich 2016, arXiv:1508.07909), unigram (Kudo 2018, arXiv:1804.10959) or single characters; pretrained:
    the one that came with an imported model, in its run directory or that of train.start_from"""
    vocab_size: int = 4096
    """pieces, special and byte pieces included; for char an upper limit"""
    byte_fallback: bool = True
    """unseen characters become their UTF-8 bytes, so that any text round-trips"""
    normalization: Literal["identity", "nfc", "nfkc"] = "identity"
    """Unicode normalization before training and encoding; identity keeps every text exactly"""
