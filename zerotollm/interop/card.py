"""The README.md of an exported model: what it is, what was measured, how to load it. No heavy imports."""

from typing import Any

from zerotollm.interop.weights import Family
from zerotollm.model.config import TransformerConfig

ROWS = {
    "steps": ("optimizer steps", "{:,}"),
    "tokens": ("tokens trained on", "{:,}"),
    "seconds": ("seconds of training", "{:,.0f}"),
    "validation_loss": ("loss on validation, nats per token", "{:.4f}"),
    "validation_bpb": ("bits per byte on validation", "{:.4f}"),
    "best_validation_bpb": ("the lowest of them during training", "{:.4f}"),
}
"""Keys of summary.json that a card shows: what each is, and how it is written."""


def model_card(
    family: Family,
    model: TransformerConfig,
    *,
    name: str,
    corpus: str,
    step: int,
    parameters: int,
    bpb: float | None,
    summary: dict[str, Any] | None,
) -> str:
    """Markdown. `step` and `bpb` are those of the exported parameters, `summary` what summary.json holds, None while
    there is none."""
    pair = model.architecture == "encoder-decoder"
    shape = f"{model.num_layers} layers, width {model.width}, {model.num_heads} heads, vocabulary {model.vocab_size:,}"
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'translation' if pair else 'text-generation'}",
        "tags:",
        "- zerotollm",
        "---",
        "",
        f"# {name}",
        "",
        f"{'Translates' if pair else 'Continues text'}; trained with ZeroToLLM on `{corpus}`. The format is that of "
        f"{family.name}: {parameters:,} parameters in float32, {shape}, context {model.max_length:,}.",
        "",
        "| measured | |",
        "|---|---|",
        f"| step of these parameters | {step:,} |",
    ]
    if bpb is not None:
        lines.append(f"| bits per byte on validation at that step | {bpb:.4f} |")
    if summary:
        lines += [
            f"| {text} | {form.format(summary[key])} |"
            for key, (text, form) in ROWS.items()
            if key in summary
        ]
    else:
        lines += ["", "The run that it comes from has no final numbers: it was imported, or is not finished."]
    loaded = "AutoModelForSeq2SeqLM" if pair else "AutoModelForCausalLM"
    text = "A sentence to translate." if pair else "In the beginning"
    lines += [
        "",
        "```python",
        f"from transformers import {loaded}, AutoTokenizer",
        "",
        f'model = {loaded}.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'ids = tokenizer("{text}", return_tensors="pt", return_token_type_ids=False)',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))",
        "```",
        "",
        "Nothing is said here of the licence of the text that it was trained on, nor of what it should be used for: a "
        "model writes what it has read, true or not.",
    ]
    return "\n".join(lines) + "\n"
