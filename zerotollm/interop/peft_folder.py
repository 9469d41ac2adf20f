"""Write low-rank adapters as the `peft` library reads them, beside the base model that `export` writes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.linalg import block_diag

from zerotollm.errors import UsageError
from zerotollm.interop.config_json import Json
from zerotollm.interop.family import Family
from zerotollm.interop.huggingface import complete_folder
from zerotollm.interop.weights import convert_dtype, parameter_shapes
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import TrainConfig
from zerotollm.training.lora import flatten_params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapters(
    out: Path, adapters: Params, train: TrainConfig, family: Family, model: TransformerConfig, dtype: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors. Raises UsageError for adapters that peft cannot hold."""
    pairs = {path: np.asarray(x) for path, x in flatten_params(adapters)}
    left = {path.removesuffix("/a") for path in pairs if path.endswith("/a")}
    widths = dict(flatten_params(parameter_shapes(model)))
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for weight in family.weights(model):
        names = ["/".join(path) for path in weight.ours]
        if left.isdisjoint(names):
            continue
        if not weight.transposed and "/" not in names[0]:
            raise UsageError(
                f"peft has no adapter of {names[0]}, which is no linear layer: export the merged model, without "
                "--format peft"
            )
        # GPT-2 has queries, keys and values in one matrix: their adapters become one of as many times the rank.
        adapted = [name for name in names if name in left]
        a_XR = np.concatenate([pairs[f"{name}/a"] for name in adapted], axis=1)
        empty = {name: np.zeros((0, widths[name].shape[-1]), np.float32) for name in names}
        b_RY = np.asarray(block_diag(*(pairs.get(f"{name}/b", empty[name]) for name in names)))
        module = weight.theirs.removesuffix(".weight")
        ranks[module] = len(b_RY)
        # torch.nn.Linear has its output axis first.
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.array(a_XR.T, order="C")
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.array(b_RY.T, order="C")
        left -= set(adapted)
    if left:
        raise UsageError(f"{family.name} has no matrix {min(left)}, and the adapters have one for it")
    others = {module: rank for module, rank in ranks.items() if rank != train.lora_rank}
    scale = train.lora_alpha / train.lora_rank
    config: Json = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": train.lora_rank,
        "lora_alpha": train.lora_alpha,
        "rank_pattern": others,
        "alpha_pattern": {module: scale * rank for module, rank in others.items()},
        "lora_dropout": train.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": family.model_type == "gpt2",
        "target_modules": list(ranks),
        "inference_mode": True,
    }
    with complete_folder(out) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(convert_dtype(tensors, dtype), folder / WEIGHTS, metadata={"format": "pt"})
