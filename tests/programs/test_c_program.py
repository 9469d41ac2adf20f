"""The exported C program computes and writes what the model does, with nothing but a C compiler."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import zerotollm
from tests.actions.test_export import GREEDY, random_run
from tests.functions import forward, init_params
from tests.imported_tokenizers import MAKERS as IMPORTED
from tests.imported_tokenizers import imported_tokenizer, sample_texts
from tests.programs.test_numpy_program import LINES, MODELS, PROMPT, TEXT, TOKENS, random_model
from zerotollm.cli import main
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import generate_texts
from zerotollm.decoding.translate import translate_texts
from zerotollm.errors import UsageError
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.programs.c_program import write_c

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler named cc")

DRAWS = 20_000
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
FAST = ["-O3", "-ffast-math"]
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0"}  # the end of the program frees its memory
CAREFUL = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The program, where it has arguments. Without, reads lengths of prefixes (0: a new cache), a source, ids, and texts;
# writes the logits after each prefix, tokens drawn from the last logits, and the ids of each text.
DRIVER = """
#define main program_main
#include "model.c"
#undef main

static int read_ids(int *ids)
{
    int n = 0;
    for (int left = scanf("%d", &n) == 1 ? n : 0; left > 0; left--)
        if (scanf("%d", ids++) != 1)
            exit(3);
    return n;
}

int main(int count, char **arguments)
{
    if (count > 1)
        return program_main(count, arguments);
    static char text[1 << 20];
    static int lengths[1 << 10], source[1 << 10], ids[1 << 22];
    struct weights *w = load(arguments[0], "weights.bin", sizeof *w, WEIGHTS_SUM);
    struct vocabulary *v = load(arguments[0], "vocabulary.bin", sizeof *v, VOCABULARY_SUM);
    struct state *s = allocate(sizeof *s);
    uint64_t seed = 7;
    int steps = read_ids(lengths), n = read_ids(source);
    read_ids(ids);
    PREPARE
    for (int i = 0; i < steps; i++) {
        s->length = lengths[i] ? s->length : 0;
        const float *logits = lengths[i] ? forward(w, s, ids, lengths[i]) : NULL;
        for (int k = 0; logits && k < TOKENS; k++)
            printf("%.9g ", logits[k]);
        printf("\\n");
    }
    for (int i = 0; i < 2 * DRAWS; i++)
        printf("%d ", i < DRAWS ? DRAW(0.5, 0.8) : DRAW(5, 0.5));
    printf("\\n");
    for (int size; scanf("%d", &size) == 1 && getchar() && fread(text, 1, size, stdin) == (size_t)size; printf("\\n")) {
        n = encode(v, text, size, ids);
        for (int i = 0; i < n; i++)
            printf("%d ", ids[i]);
    }
    return seed == 0;
}
"""


def build(folder: Path, flags: list[str], config: TransformerConfig, draws: int = 0) -> None:
    draw = (
        "draw(v, s, 0, temperature, top_p, &seed)" if draws else "0"
    )  # an encoder-decoder has no such function
    source = f"#define DRAW(temperature, top_p) {draw}\n{DRIVER}"
    prepare = "prepare_rope(s);" if config.position == "rope" else ""
    if config.encoder_layers:
        prepare += "read_source(w, s, source, n);"
    (folder / "driver.c").write_text(source.replace("PREPARE", prepare).replace("DRAWS", str(draws)))
    command = ["cc", *STRICT, *flags, "driver.c", "-o", "model", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(folder: Path, *arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(folder / "model"), *arguments], input=stdin, capture_output=True, env=ENVIRONMENT
    )


def drive(
    folder: Path,
    texts: Sequence[str] = (),
    lengths: Sequence[int] = (),
    source: Sequence[int] = (),
    ids: Sequence[int] = (),
) -> tuple[np.ndarray, list[int], list[list[int]]]:
    numbers = " ".join(f"{len(x)} {' '.join(map(str, x))}" for x in (lengths, source, ids))
    encoded = [text.encode() for text in texts]
    done = run(folder, stdin=numbers.encode() + b"".join(b"\n%d\n%s" % (len(text), text) for text in encoded))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.decode().split("\n")]
    logits, drawn, tokens = rows[: len(lengths)], rows[len(lengths)], rows[len(lengths) + 1 : -1]
    return (
        np.array([row for row in logits if row], np.float32),
        [*map(int, drawn)],
        [[*map(int, row)] for row in tokens],
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_and_writes_what_the_model_does(name, tmp_path):
    config, params, tokenizer = random_model(name)
    if "head_bias" in params:
        params["head_bias"][[tokenizer.pad_id, tokenizer.bos_id]] += (
            9  # likeliest, and no part of a translation
        )
    folder = tmp_path / "out"
    write_c(folder, params, config, tokenizer, title="a */ title")
    assert len((folder / "model.c").read_text().splitlines()) <= (400 if name == "qwen2" else 500)
    build(folder, FAST, config)
    draw = np.random.default_rng(2)
    ids_BT = draw.integers(4, tokenizer.vocab_size, (1, 12))
    source_BS = draw.integers(4, tokenizer.vocab_size, (1, 7)) if config.encoder_layers else None
    source = () if source_BS is None else source_BS[0].tolist()
    # One by one, then several at once with a cache and without.
    lengths = [*range(1, 13), 0, 5, 6, 12]
    logits_NV, _, (tokens,) = drive(folder, [TEXT], lengths, source, ids_BT[0].tolist())
    assert tokens == tokenizer.encode(TEXT).tolist()
    inputs = (ids_BT,) if source_BS is None else (source_BS, source_BS >= 0, ids_BT)
    ours_TV = np.asarray(forward(config)(params, *inputs))[0, :, : tokenizer.vocab_size]
    np.testing.assert_allclose(logits_NV, ours_TV[[*range(12), 4, 5, 11]], atol=1e-4)
    greedy, net = SamplingConfig(max_tokens=TOKENS, temperature=0.0, beam_size=1), build_net(config)
    options = ["--tokens", str(TOKENS)]
    if config.encoder_layers:
        ((ours,),) = translate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert run(folder, PROMPT, *options).stdout.decode() == ours.text + "\n"
    else:
        (ours,) = generate_texts(params, net, tokenizer, [PROMPT], greedy)
        assert run(folder, PROMPT, *options, "--temperature", "0").stdout.decode() == ours + "\n"


SPECIAL = " \n\t\u2581\u2585\0<>ea\u0301\u0323\u0344é\u1e69\u1100\u1161\u11a8"
SPECIAL += "\uac01\ufb01\ufdfa\u00bd\u0fb2\u0f71\u0f80\u2126"
"""Characters that words, tokens, or normal forms treat in a way of their own."""


TIES = ["aa aaa aaaa aaaaa aaaaaaa\n" * 20]
"""Words that merge and divide in several ways of the same score."""


def random_texts(count: int) -> list[str]:
    """Texts of letters of the corpus, special characters, and any others; the last is as long as a page."""
    draw = np.random.default_rng(0)
    anything = np.delete(np.arange(sys.maxunicode + 1), np.s_[0xD800:0xE000])
    alphabets = [np.array([*map(ord, letters)]) for letters in (" heavn rthlig,12", SPECIAL)] + [anything]
    sizes = [*draw.integers(0, 20, count - 1), 3000]
    kinds = [draw.choice(3, size, p=[0.5, 0.4, 0.1]) for size in sizes]
    return ["".join(chr(draw.choice(alphabets[kind])) for kind in row) for row in kinds]


@pytest.mark.parametrize("normalization", ["identity", "nfc", "nfkc"])
@pytest.mark.parametrize(
    ("kind", "vocab_size", "byte_fallback"),
    [
        ("bpe", 300, True),
        ("unigram", 280, True),
        ("bpe", 50, False),
        ("unigram", 28, False),
        ("char", 30, False),
    ],
)
def test_it_gives_our_ids_for_any_text(kind, vocab_size, byte_fallback, normalization, tmp_path):
    if normalization == "nfc" and kind != "unigram":
        pytest.skip("the same code as nfkc, with other tables")
    config = TokenizerConfig(kind, vocab_size, byte_fallback=byte_fallback, normalization=normalization)
    tokenizer = train_tokenizer(config, [*LINES, *TIES])
    sizes = TransformerConfig(num_layers=1, width=8, num_heads=1, position="none")
    model = resolve(sizes, vocab_size=tokenizer.vocab_size, context=8)
    write_c(tmp_path / "out", init_params(model, 0), model, tokenizer, title="tokens")
    build(tmp_path / "out", ["-O1"], model)
    texts = [*random_texts(2000), *LINES, *TIES, TEXT]
    for text, ids in zip(texts, drive(tmp_path / "out", texts)[2], strict=True):
        assert ids == tokenizer.encode(text).tolist(), text


@pytest.mark.parametrize("name", IMPORTED)
def test_it_gives_the_ids_of_an_imported_tokenizer_for_any_text(name, tmp_path):
    tokenizer = imported_tokenizer(name)
    sizes = TransformerConfig(num_layers=1, width=8, num_heads=1, position="none")
    model = resolve(sizes, vocab_size=tokenizer.vocab_size, context=8)
    write_c(tmp_path / "out", init_params(model, 0), model, tokenizer, title="tokens")
    build(tmp_path / "out", CAREFUL, model)
    texts = [*random_texts(500), *sample_texts(1500), ""]
    for text, ids in zip(texts, drive(tmp_path / "out", texts)[2], strict=True):
        assert ids == tokenizer.encode(text).tolist(), text


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model's folder, with the program and a driver that draws 20,000 tokens; its tokenizer."""
    config, params, tokenizer = random_model("qwen2")
    folder = tmp_path_factory.mktemp("c") / "out"
    write_c(folder, params, config, tokenizer, title="title")
    build(folder, FAST, config, draws=DRAWS)
    return folder, tokenizer


def test_it_draws_what_the_model_draws(exported):
    folder, tokenizer = exported
    logits_NV, drawn, _ = drive(folder, [], [4], ids=[1, 9, 299, 270])
    # A peaked distribution, and one that is nearly even.
    for temperature, top_p, half in ((0.5, 0.8, drawn[:DRAWS]), (5.0, 0.5, drawn[DRAWS:])):
        sampling = SamplingConfig(temperature=temperature, top_p=top_p)
        p_V = sample.probabilities(sampling, tokenizer.utf8, logits_NV[0], np.array([], np.int32))
        counts_V = np.bincount(half, minlength=len(p_V))
        assert not counts_V[p_V == 0].any()
        assert 2 < (p_V > 0).sum() < 200
        deviation_V = (counts_V - DRAWS * p_V) / np.sqrt(DRAWS * p_V * (1 - p_V) + 1e-9)
        assert np.abs(deviation_V[p_V > 0]).max() < 4.5


def test_what_it_samples_is_valid_utf8_and_depends_on_the_seed(exported):
    folder, _ = exported
    hot = ["light \U0001f600", "--temperature", "50", "--tokens", "200", "--seed"]
    texts = [run(folder, *hot, seed).stdout for seed in ("0", "1", "0")]
    assert texts[0] == texts[2] != texts[1]
    for text in texts:
        assert any(byte > 0x7F for byte in text.removeprefix(hot[0].encode()))
        assert text.decode("utf-8").startswith(hot[0])


def cut(content: bytes) -> bytes:
    return content[:-4]


def lengthened(content: bytes) -> bytes:
    return content + b"\0\0\0\0"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]


def swapped(content: bytes) -> bytes:
    return content[-4:] + content[4:-4] + content[:4]


def filled(content: bytes) -> bytes:
    return b"\xff" * len(content)


def empty(content: bytes) -> bytes:
    return b""


def absent(content: bytes) -> None:
    return None


@pytest.fixture(scope="module")
def careful(exported, tmp_path_factory):
    """The same model, built to stop at the first error of memory or undefined behaviour."""
    folder = tmp_path_factory.mktemp("careful")
    for name in ("model.c", "weights.bin", "vocabulary.bin"):
        shutil.copy(exported[0] / name, folder / name)
    try:
        build(folder, CAREFUL, random_model("qwen2")[0])
    except AssertionError as error:
        if "cannot find" in str(error):
            pytest.skip("this C compiler has no sanitizers")
        raise
    return folder


def test_it_runs_without_errors_of_memory(careful):
    done = run(careful, TEXT.replace("\0", "")[:20], "--tokens", "60", "--top-p", "0.9")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith(TEXT[:20])


@pytest.mark.parametrize("damage", [cut, lengthened, flipped, swapped, filled, empty, absent])
@pytest.mark.parametrize("name", ["weights.bin", "vocabulary.bin"])
def test_a_damaged_file_is_refused_in_one_line(careful, name, damage):
    content = (careful / name).read_bytes()
    damaged = damage(content)
    try:
        if damaged is None:
            (careful / name).unlink()
        else:
            (careful / name).write_bytes(damaged)
        done = run(careful, "light")
    finally:
        (careful / name).write_bytes(content)
    assert (done.returncode, done.stdout) == (1, b"")
    expected = (
        "cannot be read: put it beside the program"
        if damaged is None
        else "is damaged or of another model: export again"
    )
    assert done.stderr.decode() == f"error: {careful / name} {expected}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((b"light \xc3(",), 1, "byte 6 of the text is not UTF-8"),
        ((b"\xed\xa0\x80",), 1, "byte 0 of the text is not UTF-8"),
        (("light " * 30,), 1, "and the context holds 23: shorten it"),
        (("light", "--tokens"), 2, "--tokens: write ./model TEXT"),
        (("light", "--tokens", "-1"), 2, "--tokens: write ./model TEXT"),
        (("light", "--temperature", "nan"), 2, "--temperature: write ./model TEXT"),
        (("light", "--top-p", "1.5"), 2, "--top-p: write ./model TEXT"),
        (("light", "--speed", "1"), 2, "--speed: write ./model TEXT"),
        (("light", "waters"), 2, "waters: write ./model TEXT"),
    ],
)
def test_bad_input_is_one_line(careful, arguments, code, message):
    done = run(careful, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert message in done.stderr.decode()


def test_the_printed_command_makes_the_program_of_a_run(tmp_path, capsys):
    model = TransformerConfig(num_layers=1, width=16, num_heads=2, biases="qkv", qk_norm=False)
    run_dir, out = random_run(tmp_path, model, "text.txt"), tmp_path / "my model"
    root = Path(__file__).parents[2] / "experiments"
    arguments = ["export", "--format", "c", "--run-dir", str(run_dir), "--out", str(out)]
    assert main(arguments, root) == 0
    printed = capsys.readouterr().out
    assert (
        f"{out}: {zerotollm.load(run_dir).num_parameters:,} parameters of step 7; compile it with cc "
        in printed
    )
    command = shlex.split(printed.partition("compile it with ")[2])
    subprocess.run(command, check=True)
    done = run(out, GREEDY.prompt, "--tokens", str(GREEDY.max_tokens), "--temperature", "0")
    assert done.stdout.decode() == zerotollm.load(run_dir).generate(GREEDY.prompt) + "\n"
    again = zerotollm.load(run_dir).export(tmp_path / "again", format="c")
    source = (out / "model.c").read_bytes()
    assert (again.path / "model.c").read_bytes() == source
    assert again.show().startswith(again.sentence + "\n")
    assert f"{again.path / 'model.c'}  {len(source):,}" in again.show().splitlines()
    assert (again.save(tmp_path / "copy") / "model.c").read_bytes() == source
    with pytest.raises(UsageError, match="copy exists already: give another name"):
        again.save(tmp_path / "copy")
    assert main([*arguments[:-1], str(tmp_path / "other"), "--dtype", "float16"], root) == 2
    assert "--format c has its own types of numbers: leave --dtype out" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
