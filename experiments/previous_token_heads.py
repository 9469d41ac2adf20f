"""Question: do heads that are initialized to look back do what token shift does, and how many are needed, and where?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment previous_token_heads --budget small --seeds 6

Time: 28 seconds a run at least on one CPU core (AMD EPYC, AVX-512); 10 variants and the base, six seeds each

Expected: the table in docs/results/previous_token_heads.md; base 1.4501 bits per byte, with planted heads in two layers
1.4453, without any 1.5138
"""

from experiments.ablations import budget as budget
from experiments.base import experiment as base_experiment
from experiments.recent_tricks import code
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Change, Variant, changed, variants_of

NO_HEADS = {"model.previous_token_heads": 0}
QWEN3 = NO_HEADS | {"model.biases": "none", "model.qk_norm": True}
RWKV = "arXiv:2305.13048"


def experiment() -> Experiment:
    """Return `base` with planted heads in its first layer only: all of them, two at the small budget, three in full."""
    return changed(base_experiment(), {"name": "previous_token_heads", "model.previous_token_layers": 1})


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the base with fewer planted heads, with narrower ones, in other layers, and with token shift."""
    narrow = {"model.num_heads": 2 * base.model.num_heads}
    second = NO_HEADS | {"code": code("heads_in_second_layer")}
    heads = [
        Change("no-head", NO_HEADS, "-", "Qwen2, initialized as usual"),
        Change("one-head", {"model.previous_token_heads": 1}, "-", "for the token before only"),
        Change("second-layer", second, "-", "in the second layer alone"),
        Change("two-layers", {"model.previous_token_layers": 2}, "-", "in the first two layers"),
        Change("three-layers", {"model.previous_token_layers": 3}, "-", "in the first three layers"),
        Change("four-layers", {"model.previous_token_layers": 4}, "-", "in all layers of the small model"),
        Change("narrow-heads", narrow, "-", "twice the heads, half as wide, three of them planted"),
    ]
    architecture = [
        Change("qwen3", QWEN3, "arXiv:2505.09388", "Qwen3: no biases, queries and keys normalized"),
        Change("token-shift", QWEN3 | {"model.token_shift": 3}, RWKV, "Qwen3 with token shift"),
        Change("both", {"model.token_shift": 3}, RWKV, "planted heads and token shift"),
    ]
    return variants_of(base, {"heads": heads, "architecture": architecture})
