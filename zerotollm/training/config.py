"""How a model is trained. No heavy imports: the command line reads this file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    kind: Literal["muon", "adamw", "lion", "adafactor", "sgd"] = "muon"
    """muon for matrices with adamw for the rest (Jordan 2024); for all: adamw (arXiv:1711.05101), lion
    (arXiv:2302.06675), adafactor (arXiv:1804.04235, at absolute rates), sgd with Nesterov momentum"""
    learning_rate: float = 0.008
    """peak rate of the matrices under muon; peak rate of everything under the others"""
    adam_learning_rate: float = 0.01
    """muon only: peak rate of head and vectors, which adamw trains"""
    embedding_learning_rate: float = 0.08
    """muon only: peak rate of embedding tables, which adamw trains"""
    schedule: Literal["wsd", "cosine", "linear", "inverse_sqrt"] = "wsd"
    """after the warmup: constant, then linear decay (wsd, arXiv:2404.06395), cosine (arXiv:1608.03983), linear
    decay to the end, or peak x sqrt(warmup / step) (inverse_sqrt, arXiv:1706.03762, section 5.3)"""
    warmup_steps: int = 20
    """steps from rate 0 to the peak"""
    decay_fraction: float = 0.5
    """wsd only: share of the steps over which the rate falls to its end"""
    final_fraction: float = 0.0
    """last rate as a share of the peak; inverse_sqrt ends where it ends"""
    weight_decay: float = 0.1
    """decoupled decay of matrices, times the learning rate; under muon not of embeddings and head"""
    momentum: float = 0.95
    """muon and sgd: Nesterov momentum"""
    iterations: int = 3
    """muon only: Newton-Schulz iterations, 1 to 5"""
    block: int = 64
    """muon only: features of heads or hidden units orthogonalized together; 0: the whole matrix"""
    beta1: float = 0.9
    """adamw: decay of the first moment; lion: share of the momentum in an update"""
    beta2: float = 0.95
    """adamw: decay of the second moment; lion: decay of the momentum"""
    epsilon: float = 1e-8
    """adamw: added to the root of the second moment"""
    clip_norm: float = 0.0
    """gradients are scaled down to this global norm; 0: never"""
    moments: Literal["float32", "bfloat16", "float16"] = "float32"
    """type in which momentum and second moment are kept between steps; not for adafactor, which has hardly any"""


@dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and seeds of a run."""

    steps: int = 1650
    """optimizer steps"""
    objective: Literal["likelihood", "span_corruption", "prefix_lm", "completion", "label"] = "likelihood"
    """likelihood: of a text, or of a target given its source; for an encoder-decoder on plain text: span_corruption,
    what is hidden of it (arXiv:1910.10683, section 3.1.4), or prefix_lm, how it goes on; for a decoder: completion, of
    a prompt, the answers in a conversation, or the target of a pair; label: which one a text has, by a new head"""
    start_from: str = ""
    """run directory whose model and tokenizer training begins with, as after pretraining or import-model; what the new
    task needs besides is made anew, and so is the optimizer. A run that has a checkpoint of its own goes on with that;
    empty: all anew. Also --init-from"""
    trainable: str = ""
    """with start_from: regular expression of the parameters that are trained, others stay as they are to the bit:
    'layer_3/|final_norm|head' (paths as in layer_3/attention/query); empty: all, or with lora_rank none. New heads are
    always trained"""
    lora_rank: int = 0
    """with start_from: train matrices of this rank beside the model's instead of these (LoRA, arXiv:2106.09685); a run
    then keeps its adapters alone. 0: no adapters"""
    lora_alpha: float = 16.0
    """what adapters add is times alpha / rank"""
    lora_targets: str = "attention/|feed_forward/"
    """regular expression of the matrices that get adapters"""
    lora_dropout: float = 0.0
    """share of an adapted matrix's input features that adapters do not see in a step"""
    seed: int = 0
    """of initialization, data order and dropout"""
    micro_batches: int = 1
    """a step's batch is split in this many parts whose gradients are averaged: less memory, the same batches"""
    label_smoothing: float = 0.0
    """share of the target spread evenly over the vocabulary (arXiv:1512.00567, section 7); in gradients only"""
    z_loss: float = 0.0
    """times log(Z)^2, Z the sum of exp(logits) (PaLM, arXiv:2204.02311, section 5); in gradients only"""
    eval_every: int = 825
    """steps between validations of the whole split; 0: only at the end"""
    sample_every: int = 825
    """steps between samples shown and kept; 0: only at the end"""
    checkpoint_every: int = 825
    """steps between checkpoints; 0: only at the end. A kill costs at most so many, during a save a twentieth more. A
    validation that is the best yet is saved too"""
    keep: int = 2
    """newest checkpoints of every checkpoint_every steps kept, besides the best one"""
    average: int = 1
    """newest checkpoints of every checkpoint_every steps whose mean is evaluated and writes (arXiv:1706.03762, section
    6.1); 1: the best one instead"""
    log_every: int = 10
    """steps between lines in metrics.jsonl"""
    mesh: str = ""
    """devices along data (parts of the batch), fsdp (parts of the batch and of the parameters) and tensor (parts of
    heads, hidden units and vocabulary), as in data=2 fsdp=4; empty: all devices along data"""


def due(step: int, steps: int, every: int) -> bool:
    """Whether what is done `every` steps (0: only at the end) is done after `step`. It is at the end."""
    return step == steps or (every > 0 and step % every == 0)
