"""Write low-rank adapters as the `peft` library reads them, beside the base model that `export` writes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from zerotollm.errors import UsageError
from zerotollm.interop.config_json import Json
from zerotollm.interop.family import Family
from zerotollm.interop.huggingface import complete_folder
from zerotollm.interop.weights import convert_dtype
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import TrainConfig
from zerotollm.training.lora import example_paths, flatten_params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapters(
    out: Path, adapters: Params, train: TrainConfig, family: Family, model: TransformerConfig, dtype: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors. Raises UsageError for adapters that peft cannot hold."""
    pairs = dict(flatten_params(adapters))
    paths = {path.removesuffix("/a") for path in pairs if path.endswith("/a")}
    tensors: dict[str, np.ndarray] = {}
    targets = []
    for weight in family.weights(model):
        names = ["/".join(path) for path in weight.ours]
        if paths.isdisjoint(names):
            continue
        if not weight.transposed:
            raise UsageError(
                f"peft has no adapter of {names[0]} in {family.name}, whose {weight.theirs} is no linear layer of its "
                "own: export the merged model with --format huggingface"
            )
        targets.append(weight.theirs.removesuffix(".weight"))
        prefix = f"base_model.model.{targets[-1]}"
        # torch.nn.Linear has its output axis first: A is [R, in], B is [out, R].
        tensors[f"{prefix}.lora_A.weight"] = np.array(np.asarray(pairs[f"{names[0]}/a"]).T, order="C")
        tensors[f"{prefix}.lora_B.weight"] = np.array(np.asarray(pairs[f"{names[0]}/b"]).T, order="C")
        paths.remove(names[0])
    if paths:
        raise UsageError(f"{family.name} has no matrix {min(paths)}; its own are {example_paths(adapters)}")
    config: Json = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": train.lora_rank,
        "lora_alpha": train.lora_alpha,
        "lora_dropout": train.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": targets,
        "inference_mode": True,
    }
    with complete_folder(out) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(convert_dtype(tensors, dtype), folder / WEIGHTS, metadata={"format": "pt"})
