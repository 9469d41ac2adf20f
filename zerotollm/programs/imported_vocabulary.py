"""An imported tokenizer as JSON, for programs that know no library of tokenizers.

It has the steps of the `tokenizers` library that BPE needs, in their order: added tokens are split off, the text is
changed, split into words, and each word is merged from its bytes or its characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from zerotollm.data.tokens.byte_tokenizer import SPACE
from zerotollm.data.tokens.pretrained import PretrainedTokenizer, byte_level_alphabet, merges_without
from zerotollm.errors import UsageError
from zerotollm.programs.split_pattern import (
    Alternative,
    Ranges,
    Repeat,
    character_class,
    complement,
    digits,
    escaped,
    literal,
    parse_pattern,
    regular_expression,
)
from zerotollm.programs.unicode_forms import left_alone
from zerotollm.types import Json

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How the library's ByteLevel splits text (Radford et al. 2019)."""
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@dataclass
class _Steps:
    """What is done to a text before its words are merged."""

    changes: list[list[str]] = field(default_factory=list)
    """["normalize", form], ["replace", old, new], ["prepend", text], and ["begin", text] or ["begin first", text],
    which prepend a text unless it is there; the latter only where no added token precedes"""
    patterns: list[list[Alternative]] = field(default_factory=list)
    """how text is split into words, one pattern after the other"""
    byte_level: bool = False


def imported_vocabulary(tokenizer: PretrainedTokenizer) -> Json:
    """Return the JSON of an imported tokenizer: BPE of bytes, or of characters with bytes for unknown ones.

    `tokens` holds the text of each id; a list has bytes that are no text, and null stands for a special or unused id.
    `merges` holds (left id, right id, id of both), the first ones first. Raises UsageError naming a part of the
    tokenizer that is not expressed.
    """
    try:
        return _vocabulary(tokenizer)
    except UsageError as error:
        raise UsageError(
            f"the imported tokenizer of this model has {error}, which a program without libraries does not read: leave "
            "--format out"
        ) from None


def _vocabulary(tokenizer: PretrainedTokenizer) -> Json:
    description = tokenizer.tokenizer_json
    model, special_ids = description["model"], tokenizer.special_ids
    _check_model(model)
    steps, marked = _steps(description)
    kinds = {step.get("type") for step in _sequence(description.get("decoder"), "decoders")}
    if steps.byte_level != ("ByteLevel" in kinds):
        raise UsageError("ByteLevel in one of its pre-tokenizer and its decoder alone")
    pieces: dict[str, int] = {piece: i for piece, i in model["vocab"].items() if i not in special_ids}
    alphabet = byte_level_alphabet()
    if steps.byte_level:
        byte_pieces = {byte: piece for piece, byte in alphabet.items()}
        pieces = {piece: i for piece, i in pieces.items() if set(piece) <= alphabet.keys()}
    else:
        byte_pieces = {byte: f"<0x{byte:02X}>" for byte in range(256) if model.get("byte_fallback")}
        if model.get("ignore_merges"):
            raise UsageError("ignore_merges without ByteLevel")
    if not pieces.keys() >= set(byte_pieces.values()) or len(byte_pieces) < 256:
        raise UsageError("no token for some bytes")
    byte_ids = [pieces[byte_pieces[byte]] for byte in range(256)]
    if marked and any(" " in piece for piece in pieces):
        raise UsageError("a token with a space")
    added = _added(tokenizer, bool(steps.changes))
    words = set(pieces.values()) - (set() if steps.byte_level else set(byte_ids)) | set(added.values())
    tokens = [_token(tokenizer.token_bytes(i), i in words) for i in range(tokenizer.vocab_size)]
    spelled = [token for token in tokens if isinstance(token, str)]
    if len(set(spelled)) < len(spelled):
        raise UsageError("two tokens of one text")
    longest = sorted(added, key=len, reverse=True)
    forms = [texts[0] for name, *texts in steps.changes if name == "normalize"]
    if len(forms) > 1:
        raise UsageError("several Unicode normal forms")
    special = {piece for piece, i in model["vocab"].items() if i in special_ids}
    merges = {(left, right): left + right for left, right in merges_without(model, special)}
    return {
        "kind": "merges",
        "byte_fallback": True,
        "pad": tokenizer.pad_id,
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "stop": list(tokenizer.stop_ids),
        "names": {str(i): tokenizer.piece(i) for i in sorted(special_ids)},
        "added": f"({'|'.join(map(escaped, longest))})" if added else None,
        "added_ids": [added[text] for text in longest],
        "normalization": forms[0] if forms else None,
        "left_alone": f"({character_class(left_alone())}+)" if forms else None,
        "changes": steps.changes,
        "patterns": [regular_expression(pattern) for pattern in steps.patterns],
        "whole_words": bool(model.get("ignore_merges")),
        "byte_level": steps.byte_level,
        "bytes": byte_ids,
        "tokens": tokens,
        "merges": [
            [pieces[left], pieces[right], pieces[both]]
            for (left, right), both in merges.items()
            if {left, right, both} <= pieces.keys()
        ],
    }


def _check_model(model: Json) -> None:
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise UsageError(f"a model of type {model.get('type')!r} instead of BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UsageError(name)


def _sequence(step: Json | None, name: str) -> Sequence[Json]:
    """Return the steps of a part of a tokenizer.json, one after the other."""
    if step is None:
        return []
    return (
        [*chain(*(_sequence(one, name) for one in step[name]))] if step.get("type") == "Sequence" else [step]
    )


def word_patterns(tokenizer: PretrainedTokenizer) -> list[list[Alternative]]:
    """Return the patterns of `imported_vocabulary`, not yet written as regular expressions."""
    return _steps(tokenizer.tokenizer_json)[0].patterns


def _steps(description: Json) -> tuple[_Steps, bool]:
    """Return what is done to a text, and whether tokens have U+2581 for a space, which the steps then write as one."""
    steps = _Steps()
    for step in _sequence(description.get("normalizer"), "normalizers"):
        kind, pattern = step["type"], step.get("pattern") or {}
        if kind in FORMS:
            steps.changes.append(["normalize", kind])
        elif kind == "Prepend":
            steps.changes.append(["prepend", step["prepend"]])
        elif kind == "Replace" and pattern.get("String"):
            steps.changes.append(["replace", pattern["String"], step["content"]])
        else:
            expression = f" {pattern['Regex']!r}" if "Regex" in pattern else ""
            raise UsageError(f"the normalizer {kind}{expression}")
    for step in _sequence(description.get("pre_tokenizer"), "pretokenizers"):
        _add_splitter(steps, step)
    marked = not steps.byte_level and _spaces_are_marked(description, steps)
    if marked:
        _write_spaces(steps)
    return steps, marked


def _add_splitter(steps: _Steps, step: Json) -> None:
    kind, pattern = step["type"], step.get("pattern") or {}
    if steps.byte_level:
        raise UsageError(f"the pre-tokenizer {kind} after ByteLevel")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise UsageError("add_prefix_space in ByteLevel")
        steps.byte_level = True
        steps.patterns += [parse_pattern(GPT2_WORDS)] if step.get("use_regex", True) else []
    elif kind == "Split":
        if step.get("behavior") != "Isolated" or step.get("invert"):
            raise UsageError(f"the pre-tokenizer Split of behavior {step.get('behavior')!r}")
        text = pattern.get("String")
        steps.patterns.append(literal(text) if text else parse_pattern(pattern["Regex"]))
    elif kind == "Digits":
        one = bool(step.get("individual_digits"))
        steps.patterns.append([Alternative((Repeat(digits(), 1, 1 if one else None),))])
    elif kind == "Metaspace" and not steps.patterns:
        _add_metaspace(steps, step)
    else:
        raise UsageError(f"the pre-tokenizer {kind}")


def _add_metaspace(steps: _Steps, step: Json) -> None:
    mark, scheme = step["replacement"], step.get("prepend_scheme")
    scheme = scheme or ("always" if step.get("add_prefix_space", True) else "never")
    steps.changes.append(["replace", " ", mark])
    if scheme != "never":
        steps.changes.append(["begin" if scheme == "always" else "begin first", mark])
    if step.get("split", True):
        of_mark: Ranges = ((ord(mark), ord(mark)),)
        rest = Repeat(complement(of_mark), 0, None)
        steps.patterns.append([Alternative((Repeat(of_mark), rest)), Alternative((rest._replace(least=1),))])


def _spaces_are_marked(description: Json, steps: _Steps) -> bool:
    """Return whether U+2581 stands for a space in all tokens, and in every text before it is merged."""
    decoders = _sequence(description.get("decoder"), "decoders")
    replaced = [step["pattern"].get("String") for step in decoders if step.get("type") == "Replace"]
    contents = [step["content"] for step in decoders if step.get("type") == "Replace"]
    if any(step.get("type") == "Metaspace" for step in decoders):
        replaced, contents = [*replaced, SPACE], [*contents, " "]
    if not replaced:
        return False
    if set(replaced) != {SPACE} or set(contents) != {" "} or ["replace", " ", SPACE] not in steps.changes:
        raise UsageError(f"a decoder that replaces {replaced[0]!r}")
    for name, old, *_ in steps.changes[: steps.changes.index(["replace", " ", SPACE])]:
        if name == "replace" and {SPACE, " "} & {*old}:
            raise UsageError(f"the normalizer Replace of {old!r}")
    return True


def _write_spaces(steps: _Steps) -> None:
    """Write a space for U+2581 in all steps, as the tokens of the program do."""
    changes = [[name, *(text.replace(SPACE, " ") for text in texts)] for name, *texts in steps.changes]
    steps.changes = [
        ["replace", SPACE, " "] if change == ["replace", " ", " "] else change for change in changes
    ]
    steps.patterns = [
        [
            Alternative(
                tuple(r._replace(ranges=_with_space(r.ranges)) for r in one.repeats), _with_space(one.never)
            )
            for one in pattern
        ]
        for pattern in steps.patterns
    ]


def _with_space(ranges: Ranges) -> Ranges:
    """Return a set of characters with the space where it has U+2581, and without the space where it has not."""
    space, marked = ord(" "), any(first <= ord(SPACE) <= last for first, last in ranges)
    pieces = [
        piece
        for first, last in ranges
        for piece in ((first, min(last, space - 1)), (max(first, space + 1), last))
        if piece[0] <= piece[1]
    ]
    return tuple(sorted([*pieces, *([(space, space)] if marked else [])]))


def _added(tokenizer: PretrainedTokenizer, changes: bool) -> dict[str, int]:
    """Return the text and id of added tokens that a text may hold."""
    added: list[dict[str, Any]] = [
        token
        for token in tokenizer.tokenizer_json.get("added_tokens") or []
        if token["id"] not in tokenizer.special_ids
    ]
    for token in added:
        flags = [name for name in ("single_word", "lstrip", "rstrip") if token.get(name)]
        flags += ["normalized"] if changes and token.get("normalized") else []
        if flags:
            raise UsageError(f"the added token {token['content']!r} with {flags[0]}")
    if len({bool(token.get("normalized")) for token in added}) > 1:
        raise UsageError("added tokens of which some alone are normalized")
    return {token["content"]: token["id"] for token in added}


def _token(content: bytes, is_word: bool) -> str | list[int] | None:
    if not content:
        return None
    try:
        return content.decode() if is_word else list(content)
    except UnicodeDecodeError:
        return list(content)
