"""An experiment is a value; everything that happens to it is a function."""

from dataclasses import dataclass, field

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class Experiment:
    """All that decides a run's result."""

    name: str = "base"
    """names the run directory, runs/NAME"""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SamplingConfig = field(default_factory=SamplingConfig)
