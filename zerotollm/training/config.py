"""Options of the optimizer and of training. No heavy imports: the command line reads this file."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from zerotollm.fields import ADDED, Bounds, Fraction, FractionBelowOne, PositiveFloat, PositiveInt, Seed


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    kind: Literal["muon", "adamw", "lion", "adafactor", "sgd"] = "muon"
    """muon for matrices and adamw for the rest (Jordan 2024); or one rule for all parameters: adamw
    (arXiv:1711.05101), lion (arXiv:2302.06675), adafactor (arXiv:1804.04235, absolute learning rate), sgd with Nesterov
    momentum"""
    learning_rate: PositiveFloat = 0.008
    """peak rate of the matrices under muon; peak rate of all parameters otherwise"""
    adam_learning_rate: float = 0.01
    """muon: peak rate of head and vectors, which adamw updates"""
    embedding_learning_rate: float = 0.08
    """muon: peak rate of embedding tables, which adamw updates"""
    schedule: Literal["wsd", "cosine", "linear", "inverse_sqrt"] = "wsd"
    """after warmup: constant, then linear decay (wsd, arXiv:2404.06395), cosine (arXiv:1608.03983), linear decay to the
    end, or peak x sqrt(warmup / step) (inverse_sqrt, arXiv:1706.03762, section 5.3)"""
    warmup_steps: int = 20
    """steps from rate 0 to the peak"""
    decay_fraction: Fraction = 0.5
    """wsd: fraction of the steps during which the rate decays"""
    final_fraction: Fraction = 0.0
    """final rate as a fraction of the peak; inverse_sqrt has none"""
    weight_decay: float = 0.1
    """decoupled weight decay of matrices, times the learning rate; under muon not of embeddings and head"""
    momentum: FractionBelowOne = 0.95
    """muon and sgd: Nesterov momentum"""
    iterations: Annotated[int, Bounds(1, 5)] = 3
    """muon: Newton-Schulz iterations, 1 to 5"""
    block: int = 64
    """muon: features of heads or hidden units orthogonalized together; 0: the whole matrix"""
    beta1: FractionBelowOne = 0.9
    """adamw: decay of the first moment; lion: weight of the momentum in the update"""
    beta2: FractionBelowOne = 0.95
    """adamw: decay of the second moment; lion: decay of the momentum"""
    epsilon: PositiveFloat = 1e-8
    """adamw: added to the root of the second moment"""
    clip_norm: float = 0.0
    """clip gradients to this global norm; 0: no clipping"""
    moments: Literal["float32", "bfloat16", "float16"] = "float32"
    """type in which momentum and second moment are stored between steps; adafactor: float32 only"""


@dataclass(frozen=True)
class TrainConfig:
    """Objective, length, intervals and seed of a run."""

    steps: PositiveInt = 1650
    """optimizer steps"""
    objective: Literal["likelihood", "span_corruption", "prefix_lm", "completion", "label"] = "likelihood"
    """the training objective. likelihood: of a text, or of a target given its source. For an encoder-decoder on plain
    text: span_corruption (arXiv:1910.10683, section 3.1.4), or prefix_lm, the text after a prefix. For a decoder:
    completion of a prompt, of a conversation by its answers, or of a source by its target. label: class of a text, with
    a classification head"""
    start_from: str = ""
    """run directory from which model and tokenizer are initialized: after pretraining or import-model; new parameters
    and the optimizer start afresh. A run with a checkpoint of its own resumes from that instead. Empty: random
    initialization. Also --init-from"""
    start_tokenizer: Literal["same", "new"] = field(default="same", metadata=ADDED)
    """with start_from: the same tokenizer, or a new one as of `tokenizer`, made from this text. Each of its tokens
    starts with the embedding of that token there, or the mean of those that it is split into (arXiv:2402.09977)"""
    trainable: str = field(default="", metadata=ADDED)
    """with start_from: regular expression of the trainable parameters, as in 'layer_3/|final_norm|head' (a path is
    layer_3/attention/query); all others are frozen. Empty: all, or with lora_rank none. New heads are always trained"""
    lora_rank: int = field(default=0, metadata=ADDED)
    """with start_from: train low-rank adapters of this rank and freeze the matrices they adapt (LoRA,
    arXiv:2106.09685); checkpoints then hold only the adapters. 0: no adapters"""
    lora_alpha: PositiveFloat = field(default=16.0, metadata=ADDED)
    """the output of an adapter is multiplied by lora_alpha / lora_rank"""
    lora_targets: str = field(default="attention/|feed_forward/", metadata=ADDED)
    """regular expression of the matrices with adapters"""
    lora_dropout: FractionBelowOne = field(default=0.0, metadata=ADDED)
    """dropout rate on the input features of adapters"""
    seed: Seed = 0
    """seed of initialization, data order and dropout"""
    micro_batches: PositiveInt = 1
    """micro-batches in a step, whose gradients are averaged: less memory for the same batch"""
    label_smoothing: FractionBelowOne = 0.0
    """fraction of the target spread evenly over the vocabulary (arXiv:1512.00567, section 7); in gradients only"""
    z_loss: float = 0.0
    """weight of log(Z)^2, Z the sum of exp(logits) (PaLM, arXiv:2204.02311, section 5); in gradients only"""
    eval_every: int = 825
    """steps between evaluations of the whole validation split; 0: only at the end"""
    sample_every: int = 825
    """steps between samples, shown and written to the run directory; 0: only at the end"""
    checkpoint_every: int = 825
    """steps between checkpoints, and so steps lost if the process is killed (5 % more during a save); 0: only at the
    end. The best validation loss is saved too"""
    keep: PositiveInt = 2
    """newest regular checkpoints to keep, besides the best one"""
    average: PositiveInt = 1
    """newest regular checkpoints whose mean is evaluated and generates text (arXiv:1706.03762, section 6.1); 1: use the
    best one"""
    log_every: PositiveInt = 10
    """steps between lines in metrics.jsonl"""
    mesh: str = field(default="", metadata=ADDED)
    """devices along each axis, as in data=2 fsdp=4: data splits the batch, fsdp the batch and the parameters, tensor
    heads, hidden units and vocabulary; empty: all devices along data"""


def default_checkpoint(train: TrainConfig) -> Literal["best", "average"]:
    """Return the checkpoint that is meant if none is named: "average" if `average` asks for it, else "best"."""
    return "average" if train.average > 1 else "best"


def due(step: int, steps: int, every: int) -> bool:
    """Return whether a task repeated `every` steps is due after `step`. At the end it always is (0: only then)."""
    return step == steps or (every > 0 and step % every == 0)


def times(step: int, steps: int, every: int) -> int:
    """Return how often what is done `every` steps is still to be done after `step`."""
    between = steps // every - step // every if every else 0
    return between + (step < steps and not (every and steps % every == 0))
