"""Seeds that train together on a mesh give the losses of single seeds on one device.

Eight devices are eight threads of one CPU, in a separate process that runs this file as a script.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig

ROOT = Path(__file__).parents[2]
SEEDS = (3, 4)


def experiment_in(folder: Path, mesh: str) -> Experiment:
    return Experiment(
        data=DataConfig(corpus=str(folder / "text.txt"), dir=str(folder / "cache"), context=16, batch_size=8),
        tokenizer=TokenizerConfig(kind="char", vocab_size=300),
        model=TransformerConfig(num_layers=1, width=16, num_heads=2, vocab_size=280, dropout=0.1),
        optimizer=OptimizerConfig(block=8, warmup_steps=2),
        train=TrainConfig(steps=12, mesh=mesh),
    )


def main(folder: Path) -> None:
    from zerotollm.session.train_in_memory import compile_programs, fit

    results = {}
    for name, mesh in (("alone", ""), ("split", "data=2 fsdp=2 tensor=2")):
        experiment = experiment_in(folder, mesh)
        if name == "alone":
            programs = compile_programs(experiment)
            fitted = [fit(programs, [seed])[0] for seed in SEEDS]
        else:
            programs = compile_programs(experiment, num_vmapped_seeds=len(SEEDS))
            fitted = fit(programs, SEEDS)
        results[name] = [[*run.losses, run.validation["loss"]] for run in fitted]
        results[f"{name} on"] = programs.placement.mesh.size
    # One seed, whose batches are placed as in a run.
    programs = compile_programs(experiment_in(folder, "data=4 fsdp=2"))
    results["one"] = fit(programs, SEEDS[:1])[0].losses
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.mark.slow
def test_seeds_together_on_a_mesh_equal_single_seeds_on_one_device(tmp_path):
    draw = np.random.default_rng(0)
    words = ["sea", "ship", "wind", "star", "salt", "rope"]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(draw.choice(words, 60)) for _ in range(60)))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert (results["alone on"], results["split on"]) == (1, 8)
    np.testing.assert_allclose(results["split"], results["alone"], rtol=1e-5)
    np.testing.assert_allclose(results["one"], results["alone"][0][:-1], rtol=1e-5)
    assert results["alone"][0] != results["alone"][1]
