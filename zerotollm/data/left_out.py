"""Text of a corpus that a feed does not use, in words: for reports, and for errors if nothing is left."""

from collections.abc import Mapping

from zerotollm.data.config import DataConfig
from zerotollm.errors import UsageError


def describe_left_out(reasons: Mapping[str, int], lost: Mapping[str, float]) -> str:
    """Return how many texts are left out and why, and the share of each split's bytes that is lost."""
    lines = [f"{number:,}: {reason}" for reason, number in reasons.items() if number]
    if lost:
        shares = ", ".join(f"{100 * share:.3g} % of the {name} bytes" for name, share in lost.items())
        lines.append(
            f"{shares}: characters outside the vocabulary, or shortened by normalization "
            "(tokenizer.byte_fallback, tokenizer.normalization)"
        )
    return "; ".join(lines)


def check_decodable(corpus: str, split: str, num_bytes: int) -> None:
    """Raise UsageError if decoding returns no byte of a split."""
    if not num_bytes:
        raise UsageError(
            f"the tokenizer knows no character of the {split} text of {corpus}: choose another tokenizer, or set "
            "tokenizer.byte_fallback"
        )


def check_not_empty(
    data: DataConfig, split: str, kind: str, num_used: int, too_long: int, dropped: Mapping[str, int]
) -> None:
    """Raise UsageError if none of a split's pairs or examples (`kind`) is used, and say why."""
    if num_used:
        return
    files = {"train": data.corpus, "validation": data.validation, "test": data.test}[split]
    corpus, total = files or data.corpus, sum(dropped.values())
    if not total:
        advice = "give more text" if files else f"raise data.{split}_fraction"
        if data.validation and not files:
            advice = "name files for it as data.test"
        raise UsageError(f"{corpus} has no {split} {kind}: {advice}")
    if too_long == total:
        which, verb = (f"all {total:,}", "are") if total > 1 else ("the only one of the", "is")
        raise UsageError(
            f"{which} {split} {kind} of {corpus} {verb} longer than {data.context} tokens: raise data.context"
        )
    advice = "check the files" + (", or raise data.context" if too_long else "")
    reasons = describe_left_out(dropped, {})
    raise UsageError(f"none of the {total:,} {split} {kind} of {corpus} is left ({reasons}): {advice}")
