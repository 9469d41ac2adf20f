"""Speed of the exported C program beside our own decoding of one text, on this CPU, in alternating runs:

    python -m tests.bench_c_program --run-dir runs/base

Both continue the same text with the same number of tokens, and never stop before. Reading the files and compilation
are not counted. Ours may use all cores, the C program uses one.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from zerotollm.decoding import sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.text import encode_prompt
from zerotollm.programs.c_program import write_c
from zerotollm.run import load

PROMPT = "In the beginning"
SETTINGS = {"greedy": (0.0, 1.0), "temperature 0.8": (0.8, 1.0), "temperature 0.8, top-p 0.95": (0.8, 0.95)}
WARM_UP = 2
# Reads seeds, and writes the seconds of a text for each.
DRIVER = """
#define _POSIX_C_SOURCE 199309L
#include <time.h>
#define main program_main
#include "model.c"
#undef main

int main(int count, char **arguments)
{
    if (count < 4)
        return program_main(count, arguments);
    struct weights *w = load(arguments[0], "weights.bin", sizeof *w, WEIGHTS_SUM);
    struct vocabulary *v = load(arguments[0], "vocabulary.bin", sizeof *v, VOCABULARY_SUM);
    struct state *s = allocate(sizeof *s);
    PREPARE
    for (int seed; scanf("%d", &seed) == 1; fflush(stderr)) {
        struct timespec start, end;
        s->length = 0;
        clock_gettime(CLOCK_MONOTONIC, &start);
        generate(w, v, s, "PROMPT", atoi(arguments[1]), atof(arguments[2]), atof(arguments[3]), seed);
        clock_gettime(CLOCK_MONOTONIC, &end);
        fprintf(stderr, "%.6f\\n", end.tv_sec - start.tv_sec + 1e-9 * (end.tv_nsec - start.tv_nsec));
    }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/base"))
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--runs", type=int, default=25)
    options = parser.parse_args()
    run = load(options.run_dir)
    prompt_T = encode_prompt(run.tokenizer, PROMPT, run.model_config.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "c"
        write_c(folder, run.params, run.model_config, run.tokenizer, title=run.experiment.name)
        source = (folder / "model.c").read_text()
        endless = source.replace(f"if (id == {run.tokenizer.stop_id}) break;", "")
        assert endless != source
        (folder / "model.c").write_text(endless)
        prepare = "prepare_rope(s);" if run.model_config.position == "rope" else ""
        (folder / "driver.c").write_text(DRIVER.replace("PREPARE", prepare).replace("PROMPT", PROMPT))
        build = ["cc", "-O3", "-ffast-math", "driver.c", "-o", "driver", "-lm"]
        subprocess.run(build, cwd=folder, check=True)
        print("| tokens per second | `generate` | `model.c` | ratio |\n|---|---|---|---|")
        for name, (temperature, top_p) in SETTINGS.items():
            command = [str(folder / "driver"), *map(str, (options.tokens, temperature, top_p))]
            pipe = subprocess.PIPE
            with subprocess.Popen(
                command, text=True, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe
            ) as program:
                assert program.stdin is not None
                assert program.stderr is not None
                seconds: list[tuple[float, float]] = []
                for seed in range(options.runs + WARM_UP):
                    sampling = SamplingConfig("", options.tokens, temperature, top_p=top_p, seed=seed)
                    start = time.perf_counter()
                    (ids,) = sample.generate(
                        run.params, run.net, [prompt_T], sampling, stop_ids=(), utf8=run.tokenizer.utf8
                    )
                    ours = time.perf_counter() - start
                    assert len(ids) == options.tokens
                    print(seed, file=program.stdin, flush=True)
                    seconds.append((ours, float(program.stderr.readline())))
                program.stdin.close()
            pairs = np.array(seconds[WARM_UP:])
            ours, theirs = (f"{options.tokens / x:,.0f}" for x in np.median(pairs, axis=0))
            ratio = statistics.median((pairs[:, 0] / pairs[:, 1]).tolist())
            print(f"| {name} | {ours} | {theirs} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
