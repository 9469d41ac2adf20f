"""The exported C program computes and writes what the model does, with nothing but a C compiler."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions import forward
from tests.programs.test_numpy_program import LINES, MODELS, PROMPT, TEXT, TOKENIZERS, TOKENS, random_model
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import generate_texts
from zerotollm.decoding.translate import translate_texts
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig
from zerotollm.programs.c_program import write_c

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler named cc")

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
FAST = ["-O3", "-ffast-math"]
CAREFUL = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The logits after prefixes of the ids, whose lengths are given (0: a new cache), and the ids of a text.
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
    static char text[1 << 20];
    static int lengths[1 << 10], source[1 << 10], ids[1 << 22];
    struct weights *w = load(arguments[0], "weights.bin", sizeof *w, WEIGHTS_SUM);
    struct vocabulary *v = load(arguments[0], "vocabulary.bin", sizeof *v, VOCABULARY_SUM);
    struct state *s = allocate(sizeof *s);
    int steps = read_ids(lengths), n = read_ids(source);
    read_ids(ids);
    getchar();
    PREPARE
    for (int i = 0; i < steps; i++) {
        s->length = lengths[i] ? s->length : 0;
        const float *logits = lengths[i] ? forward(w, s, ids, lengths[i]) : NULL;
        for (int k = 0; logits && k < TOKENS; k++)
            printf("%.9g ", logits[k]);
        printf("\\n");
    }
    n = encode(v, text, fread(text, 1, sizeof text, stdin), ids);
    for (int i = 0; i < n; i++)
        printf("%d ", ids[i]);
    return count < 0;
}
"""


def build(folder: Path, flags: list[str], source: str = "model.c", name: str = "model") -> None:
    command = ["cc", *STRICT, *flags, source, "-o", name, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(folder: Path, *arguments: str, stdin: bytes = b"", name: str = "model") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(folder / name), *arguments], input=stdin, capture_output=True, env={})


def build_driver(folder: Path, config: TransformerConfig) -> None:
    prepare = "prepare_rope(s);" if config.position == "rope" else ""
    if config.encoder_layers:
        prepare += "read_source(w, s, source, n);"
    (folder / "driver.c").write_text(DRIVER.replace("PREPARE", prepare))
    build(folder, FAST, "driver.c", "driver")


def drive(folder: Path, text: str, lengths=(), source=(), ids=()) -> tuple[np.ndarray, list[int]]:
    numbers = " ".join(f"{len(x)} {' '.join(map(str, x))}" for x in (lengths, source, ids))
    done = run(folder, stdin=f"{numbers}\n".encode() + text.encode(), name="driver")
    assert done.returncode == 0, done.stderr
    *rows, tokens = done.stdout.decode().split("\n")
    return np.array([row.split() for row in rows if row], np.float32), [*map(int, tokens.split())]


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_and_writes_what_the_model_does(name, tmp_path):
    config, params, tokenizer = random_model(name)
    folder = tmp_path / "out"
    write_c(folder, params, config, tokenizer, title="a */ title")
    assert len((folder / "model.c").read_text().splitlines()) <= 700
    build(folder, FAST)
    build_driver(folder, config)
    draw = np.random.default_rng(2)
    ids_BT = draw.integers(4, tokenizer.vocab_size, (1, 12))
    source_BS = draw.integers(4, tokenizer.vocab_size, (1, 7)) if config.encoder_layers else None
    source = () if source_BS is None else source_BS[0].tolist()
    # One by one, then several at once with a cache and without.
    lengths = [*range(1, 13), 0, 5, 6, 12]
    logits_NV, tokens = drive(folder, TEXT, lengths, source, ids_BT[0].tolist())
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
