"""Options of the corpus, its batches and the tokenizer. No heavy imports: the command line reads this file."""

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from zerotollm.fields import ADDED, INT32_MAX, Bounds, FractionBelowOne, PositiveInt


@dataclass(frozen=True)
class DataConfig:
    """A corpus and the shape of its batches."""

    corpus: str = "bible-web"
    """text: bible-VERSION, shakespeare, tfds:NAME, or a path, folder or glob of .txt, .md, .jsonl (each also .gz);
    pairs to translate: bible-A:bible-B, SOURCE.txt:TARGET.txt (several sources: A+B:TARGET), PAIRS.tsv, tfds:NAME;
    completions: a .jsonl of prompt and completion or of messages, chitchat, or pairs; labels: a .jsonl of text and
    label, genre:bible-A, or version:bible-A+bible-B"""
    validation: str = ""
    """own files of pairs, completions or labels: validation files, in the form of corpus; empty: hold out a fraction of
    the corpus"""
    test: str = ""
    """own files of pairs, completions or labels: files for the final test"""
    extra: str = ""
    """own files of pairs: Bible versions as in bible-kjv+bible-asv:bible-bbe. Where a training target is a verse of the
    last version, that verse of the others becomes a further source. Held-out targets get no further sources"""
    extra_steps: int = field(default=0, metadata=ADDED)
    """pairs: the first training steps, which read data.extra too; later steps read the corpus alone. 0: all steps"""
    old: str = field(default="", metadata=ADDED)
    """plain text: the corpus of the pretrained model; the loss on it is measured before and after training"""
    replay: FractionBelowOne = field(default=0.0, metadata=ADDED)
    """fraction of the steps that read data.old"""
    reverse: bool = False
    """pairs: translate from target to source"""
    dir: str = ""
    """folder for prepared data, tokenizers and tokens; empty: $ZEROTOLLM_DATA, else ~/.cache/zerotollm"""
    documents: Literal["auto", "file", "paragraph"] = "auto"
    """own files: what one document is. auto: a paragraph if a single file has at least 20 long ones, else a file"""
    validation_fraction: FractionBelowOne = 0.05
    """own files, and tfds sets without a validation split: fraction of the text held out for validation"""
    test_fraction: FractionBelowOne = 0.05
    """own files, and tfds sets without a test split: fraction of the text held out for the final test"""
    context: PositiveInt = 256
    """tokens in a window; for pairs, the most tokens in a source or a target: longer pairs are dropped and counted"""
    batch_size: PositiveInt = 4
    """windows per step, over all processes and micro-batches; for pairs, the token budget of a step is batch_size x
    context"""
    buckets: PositiveInt = 4
    """pairs: the most widths to which batches are padded. Each width compiles one program; few widths waste padding"""
    document_mask: bool = False
    """attention stays within the token's own document"""


def is_tsv(corpus: str) -> bool:
    """Return whether a corpus is one file of source TAB target, maybe compressed (.gz)."""
    return re.search(r"\.tsv(\.gz)?$", corpus.lower()) is not None and (":" not in corpus or is_file(corpus))


def is_file(name: str) -> bool:
    """Return whether a file of exactly this name exists: then `:` and `+` in it separate nothing."""
    return os.path.isfile(os.path.expanduser(name))


def names_pairs(corpus: str) -> bool:
    """Return whether a corpus names pairs: SOURCE:TARGET or PAIRS.tsv, but no folder and no .jsonl file."""
    if re.search(r"\.jsonl(\.gz)?$", corpus.lower()) or os.path.isdir(os.path.expanduser(corpus)):
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
