"""The nearest allowed word to an unknown one, for error messages. No heavy imports."""

from collections.abc import Iterable
from difflib import get_close_matches

SYNONYMS = {
    "optimizer.learning_rate": "lr max_lr base_lr peak_lr step_size",
    "optimizer.final_fraction": "min_lr end_lr lr_end",
    "optimizer.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule decay_lr",
    "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps warmup_ratio lr_warmup",
    "optimizer.weight_decay": "wd decay",
    "optimizer.beta1": "adam_beta1",
    "optimizer.beta2": "adam_beta2",
    "optimizer.epsilon": "eps adam_epsilon adam_eps",
    "optimizer.clip_norm": "grad_clip clip clip_grad gradient_clip gradient_clip_val max_grad_norm max_norm",
    "optimizer.kind": "optim optimizer optimizer_name optimizer_type",
    "data.corpus": "data dataset dataset_name dataset_path data_path train_data train_file training_data corpus_path "
    "file files input input_file text_file path source",
    "data.validation": "val val_file val_data validation_file eval_file dev",
    "data.validation_fraction": "val_split val_fraction validation_split test_size",
    "data.context": "block_size seq_len seq_length sequence_length max_seq_len max_seq_length context_length "
    "context_size context_window ctx n_ctx window max_len model_max_length",
    "data.batch_size": "batch bs batchsize global_batch_size train_batch_size per_device_train_batch_size",
    "train.micro_batches": "gradient_accumulation_steps gradient_accumulation grad_accum grad_accum_steps "
    "accumulate_grad_batches accumulation_steps micro_batch_size accumulate",
    "tokenizer.kind": "tokenizer tokenizer_type tokenizer_name",
    "tokenizer.vocab_size": "vocab n_vocab vocabulary vocabulary_size",
    "model.num_layers": "n_layer n_layers layers num_hidden_layers depth num_blocks n_blocks",
    "model.num_heads": "n_head n_heads heads num_attention_heads nhead",
    "model.num_kv_heads": "n_kv_head n_kv_heads kv_heads num_key_value_heads n_query_groups",
    "model.width": "n_embd d_model hidden_size hidden_dim dim embed_dim embedding_dim emb_dim n_embed d_embed",
    "model.ff_width": "d_ff dff ffn_dim intermediate_size ff_dim mlp_dim ffn_hidden_size dim_feedforward",
    "model.head_width": "head_dim d_head head_size",
    "model.dropout": "drop dropout_rate p_drop",
    "model.tie_embeddings": "tie_weights tie_word_embeddings weight_tying",
    "model.biases": "bias use_bias",
    "model.norm_epsilon": "rms_norm_eps layer_norm_eps",
    "train.steps": "max_steps max_iters iters num_steps n_steps num_iterations total_steps train_steps updates",
    "train.eval_every": "eval_interval eval_steps eval_freq val_every val_interval evaluate_every",
    "train.log_every": "log_interval logging_steps log_freq",
    "train.checkpoint_every": "save_steps save_every save_interval save_freq checkpoint_interval ckpt_every "
    "checkpoint_steps",
    "train.keep": "save_total_limit max_checkpoints",
    "train.start_from": "pretrained pretrained_model model_name_or_path from_pretrained base_model finetune_from "
    "init start_checkpoint",
    "train.lora_rank": "lora lora_r r rank",
    "train.seed": "random_seed rng_seed data_seed",
    "train.mesh": "devices num_devices gpus num_gpus n_gpus n_gpu tensor_parallel fsdp nproc_per_node",
    "compute.precision": "dtype torch_dtype bf16 fp16 mixed_precision half amp",
    "compute.attention": "flash flash_attention attn attn_implementation",
    "compute.remat": "gradient_checkpointing checkpoint_activations activation_checkpointing",
    "sample.prompt": "start start_text text input_text",
    "sample.max_tokens": "max_new_tokens num_tokens n_tokens tokens length max_gen_len",
    "sample.temperature": "temp t",
    "sample.beam_size": "num_beams beams beam",
    "experiment": "config config_name exp model model_name recipe",
    "run_dir": "out out_dir output output_dir save_dir checkpoint_dir ckpt_dir log_dir logdir dir model_dir folder",
}
"""Options, each with its names in nanoGPT, transformers, litgpt and others."""

NO_OPTION = {
    "epochs epoch num_epochs num_train_epochs max_epochs n_epochs": "set --train.steps; training prints the "
    "number of epochs",
    "device cuda gpu cpu use_gpu no_cuda use_cpu accelerator": "jax chooses the device; set another with "
    "JAX_PLATFORMS=cpu before the command, and several with --train.mesh",
    "resume resume_from resume_from_checkpoint resume_training": "the same command again resumes a run",
    "wandb wandb_log wandb_project use_wandb report_to tensorboard": "every run writes tensorboard/ and metrics.jsonl",
    "compile torch_compile no_compile jit": "every step is compiled",
    "verbose v quiet debug_level log_level": "--debug shows the traceback of an error",
}
"""Names of options that other programs have and this one does not -> what to do instead."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean X?`, or an empty text if no allowed word is near.

    Case, the choice between `-` and `_`, and a missing group are ignored: `steps` is near `train.steps`.
    """
    names = list(allowed)
    # Names are compared without their groups, which would make different fields similar.
    near = [_base_name(word), *get_close_matches(_base_name(word), map(_base_name, names), 1, 0.7)]
    candidates: list[str] = []
    for base_name in near:
        candidates = candidates or [name for name in names if _base_name(name) == base_name]
    best = get_close_matches(word, candidates, 1, 0.0) if "." in word else candidates
    return f"; did you mean {best[0]}?" if best else ""


def meant_option(word: str, allowed: Iterable[str]) -> str:
    """Return the same for an option of the command line, which may have a name of another program."""
    names = list(allowed)
    base_name = _base_name(word).replace("-", "_")
    if base_name not in {_base_name(name).replace("-", "_") for name in names}:
        for words, advice in NO_OPTION.items():
            if base_name in words.split():
                return f"; {advice}"
        for synonym_of, words in SYNONYMS.items():
            if base_name in words.split():
                # Options of an action have no group.
                of_action = "--" + _base_name(synonym_of)
                return did_you_mean(of_action if of_action in names else synonym_of, names)
    return did_you_mean(word, names)


def _base_name(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-").rpartition(".")[2]
