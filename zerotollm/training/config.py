"""How a model is trained. No heavy imports: the command line reads this file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    kind: Literal["muon", "adamw"] = "muon"
    """muon for matrices with adamw for the rest (Jordan 2024), or adamw for all (arXiv:1711.05101)"""
    learning_rate: float = 0.008
    """peak rate of the matrices under muon; peak rate of everything under adamw"""
    adam_learning_rate: float = 0.01
    """muon only: peak rate of head and vectors, which adamw trains"""
    embedding_learning_rate: float = 0.05
    """muon only: peak rate of embedding tables, which adamw trains"""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """warmup-stable-decay (arXiv:2404.06395) or cosine (arXiv:1608.03983)"""
    warmup_steps: int = 20
    """steps from rate 0 to the peak"""
    decay_fraction: float = 0.5
    """wsd only: share of the steps over which the rate falls to its end"""
    final_fraction: float = 0.0
    """last rate as a share of the peak"""
    weight_decay: float = 0.1
    """decoupled decay of matrices, times the learning rate; under muon not of embeddings and head"""
    momentum: float = 0.95
    """muon only: Nesterov momentum"""
    iterations: int = 3
    """muon only: Newton-Schulz iterations, 1 to 5"""
    block: int = 64
    """muon only: features of heads or hidden units orthogonalized together; 0: the whole matrix"""
    beta1: float = 0.9
    """adamw: decay of the first moment"""
    beta2: float = 0.95
    """adamw: decay of the second moment"""
    epsilon: float = 1e-8
    """adamw: added to the root of the second moment"""
    clip_norm: float = 0.0
    """gradients are scaled down to this global norm; 0: never"""


@dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and seeds of a run."""

    steps: int = 3300
    """optimizer steps"""
    seed: int = 0
    """of initialization, data order and dropout"""
    micro_batches: int = 1
    """a step's batch is split in this many parts whose gradients are averaged"""
    eval_every: int = 825
    """steps between validations of the whole split; 0: only at the end"""
    sample_every: int = 825
    """steps between samples shown and kept; 0: only at the end"""
    checkpoint_every: int = 825
    """steps between checkpoints; 0: only at the end"""
    keep: int = 2
    """newest checkpoints kept, besides the best one"""
    log_every: int = 10
    """steps between lines in metrics.jsonl"""
