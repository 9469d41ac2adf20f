"""Small tokenizers of every kind that is imported, each with the steps of a published tokenizer.json."""

import json
import random
from functools import cache

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zerotollm.data.tokens.pretrained import PretrainedTokenizer, pretrained_tokenizer

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{REST}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{REST}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<s>", "</s>", "<unk>", "<|end|>"]
TEXT = """In the beginning God created the heaven and the earth. It's 1234567 o'clock, they'LL say; I'm sure we've
\tall\r\n\r\n   been there   <think> hello </think> <|end|> </s> <s>
Съешь ещё этих мягких французских булок, да выпей чаю. Ελλάδα και ΣΊΣΥΦΟΣ. שלום עולם. مرحبا بالعالم ١٢٣.
नमस्ते दुनिया १२३। สวัสดีชาวโลก ๑๒๓ 今天天气很好。日本語のテキスト、カタカナ。안녕하세요 세계 ½ Ⅷ ² ①
caf\u00e9 cafe\u0301 na\u00efve \u1e69 s\u0323\u0307 \u212b \u017f \u212a 'ſ
\u2581 \u2581\u2581x \u00a0\u3000\u2028\u0085 \ufb01 \U0001f600\U0001f468\u200d\U0001f469 \U00020000
def f(x):\n        return x*x  # comment\n\n\nif __name__ == "__main__":\n\tprint(f(10_000))\n"""
"""Many scripts, numbers, spaces, special and added tokens, and characters that have several normal forms."""
PIECES = [*SPECIAL, "<think>", "<think>!", "'S", "'\u017f", "  ", " heavenly", "e\u0301", "\u2581"]
LINES = [line + "\n" for line in TEXT.split("\n")] * 8


def _imported(
    library: Tokenizer, added: tuple[str, ...] = ("<think>", "</think>", "<think>!")
) -> PretrainedTokenizer:
    library.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIAL])
    library.add_tokens([AddedToken(piece, normalized=False) for piece in added])
    bos, eos = (library.token_to_id(piece) for piece in SPECIAL[:2])
    return pretrained_tokenizer(
        json.loads(library.to_str()), bos_id=bos, eos_id=eos, pad_id=None, stop_ids=[eos], source="here"
    )


def byte_level(
    *splitters: pre_tokenizers.PreTokenizer,
    use_regex: bool = False,
    whole_words: bool = False,
    normalizer: normalizers.Normalizer | None = None,
    added: tuple[str, ...] = ("<think>", "</think>", "<think>!"),
) -> PretrainedTokenizer:
    library = Tokenizer(models.BPE(ignore_merges=whole_words))
    if normalizer:
        library.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splitters, last]) if splitters else last
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    if whole_words:  # a word that no merges produce
        fields = json.loads(library.to_str())
        fields["model"]["vocab"]["Ġheavenly"] = len(fields["model"]["vocab"])
        library = Tokenizer.from_str(json.dumps(fields))
    return _imported(library, added)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def characters(
    normalizer: normalizers.Normalizer | None = None, splitter: pre_tokenizers.PreTokenizer | None = None
) -> PretrainedTokenizer:
    """BPE of characters with bytes for unknown ones, as SentencePiece made those of Llama 2 and Mistral."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.train_from_iterator(
        [line for line in LINES if line.isascii()],
        trainers.BpeTrainer(vocab_size=200, show_progress=False),
    )
    fields = json.loads(trained.to_str())["model"]
    pieces = [
        *SPECIAL[:3],
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *fields["vocab"],
        "\u2581\u2581",
        "é",
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [*map(tuple, fields["merges"]), ("\u2581", "\u2581")]
    library = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        library.normalizer = normalizer
    if splitter:
        library.pre_tokenizer = splitter
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _imported(library)


LLAMA2 = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
MAKERS = {
    "gpt2": lambda: byte_level(use_regex=True, added=()),
    "qwen": lambda: byte_level(split(QWEN2), normalizer=normalizers.NFC()),
    "llama3": lambda: byte_level(split(LLAMA3), whole_words=True, added=()),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "tekken": lambda: byte_level(split(TEKKEN), whole_words=True),
    "digits": lambda: byte_level(pre_tokenizers.Digits(individual_digits=False), split("\n| "), added=()),
    "unsplit": lambda: byte_level(added=()),
    "llama2": lambda: characters(LLAMA2),
    "mistral": lambda: characters(splitter=pre_tokenizers.Metaspace("\u2581", "first", split=False)),
    "metaspace": lambda: characters(splitter=pre_tokenizers.Metaspace("\u2581", "always", split=True)),
    "spaces": lambda: characters(normalizers.Replace(" ", "\u2581")),
}
"""GPT-2; Qwen 2 and 3; Llama 3 and SmolLM3; SmolLM and SmolLM2; Mistral NeMo; a rare one or two; Llama 2; Mistral."""


def sample_texts(count: int) -> list[str]:
    """Return the same texts each time: pieces and characters of `TEXT`, slices of it, and any other characters."""
    draw = random.Random(0)
    anything = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]

    def text() -> str:
        size, start = draw.randrange(30), draw.randrange(len(TEXT))
        kinds = (
            lambda: TEXT[start : start + size],
            lambda: "".join(draw.choices([*TEXT, *PIECES], k=size)),
            lambda: "".join(draw.choices([*PIECES, " ", "\n", "\r", "\t", "1", "a"], k=size)),
            lambda: "".join(chr(code) for code in draw.choices(anything, k=size)),
            lambda: "".join(chr(draw.randrange(0x3000)) for _ in range(size)),
        )
        return draw.choice(kinds)()

    return [TEXT, *LINES, *(text() for _ in range(count))]


@cache
def imported_tokenizer(name: str) -> PretrainedTokenizer:
    return MAKERS[name]()


def texts() -> st.SearchStrategy[str]:
    """Texts of the pieces and characters of `TEXT`, and of any others."""
    pieces, lines = st.sampled_from([*TEXT, *PIECES]), st.sampled_from(LINES)
    return st.one_of(st.lists(st.one_of(pieces, lines), max_size=12).map("".join), st.text(max_size=20))
