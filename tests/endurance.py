"""Does memory grow, or the number of open files? Train, save, evaluate and generate again and again in one process.

python -m tests.endurance --minutes 60 [--steps 500]
"""

import argparse
import gc
import io
import os
import random
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent


def resident_bytes() -> int:
    """Memory that this process holds now, by Linux's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def experiment_of(folder: Path, steps: int):
    """A model of one layer on words of the licence."""
    from zerotollm.data.config import DataConfig, TokenizerConfig
    from zerotollm.decoding.config import SamplingConfig
    from zerotollm.experiment import Experiment
    from zerotollm.model.config import TransformerConfig
    from zerotollm.training.config import TrainConfig

    return Experiment(
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "data"), context=32, batch_size=8),
        tokenizer=TokenizerConfig(vocab_size=300),
        model=TransformerConfig(num_layers=1, width=32, num_heads=2),
        train=TrainConfig(steps=steps, eval_every=100, sample_every=100, checkpoint_every=50),
        sample=SamplingConfig(max_tokens=8),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--steps", type=int, default=500, help="of each run; the process begins one after the other"
    )
    options = parser.parse_args()
    end, steps = time.monotonic() + 60 * options.minutes, options.steps

    import numpy as np

    import zerotollm
    from zerotollm.actions.config import EvaluateOptions
    from zerotollm.actions.evaluate import evaluate
    from zerotollm.actions.train import train

    rounds = []
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        words = (ROOT / "LICENSE").read_text().split()
        paragraphs = [" ".join(random.Random(i).choices(words, k=80)) for i in range(60)]
        (folder / "text.txt").write_text("\n\n".join(paragraphs))
        experiment = experiment_of(folder, steps)
        while len(rounds) < 4 or time.monotonic() < end:
            run_dir = folder / f"run-{len(rounds)}"
            seeded = replace(experiment, train=replace(experiment.train, seed=len(rounds)))
            with redirect_stdout(io.StringIO()):
                train(seeded, run_dir)
                evaluate(seeded, run_dir, EvaluateOptions())
                zerotollm.load(run_dir).generate("the", max_tokens=8)
            gc.collect()
            rounds.append((resident_bytes() / 2**20, len(os.listdir("/proc/self/fd"))))
            sys.stdout.write(
                f"{len(rounds) * steps:,} steps: {rounds[-1][0]:.1f} MB, {rounds[-1][1]} files open\n"
            )
            sys.stdout.flush()
    settled = np.array(rounds[len(rounds) // 2 :])  # the first rounds compile, and fill caches
    slope = np.polyfit(np.arange(len(settled)) * steps / 1000, settled[:, 0], 1)[0]
    files = int(settled[-1, 1] - settled[0, 1])
    sys.stdout.write(f"{slope:+.2f} MB per 1,000 steps, {files:+d} open files, over the second half\n")
    return 0 if slope < 1 and files <= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
