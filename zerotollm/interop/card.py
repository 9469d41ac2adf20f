"""README.md of an exported model: what it is, what was measured, how to load it."""

from zerotollm.interop.config_json import Json
from zerotollm.interop.family import Family
from zerotollm.model.config import TransformerConfig

ROWS = {
    "steps": ("optimizer steps", "{:,}"),
    "tokens": ("tokens trained on", "{:,}"),
    "seconds": ("seconds of training", "{:,.0f}"),
    "validation_loss": ("loss on validation, nats per token", "{:.4f}"),
    "validation_bpb": ("bits per byte on validation", "{:.4f}"),
    "best_validation_bpb": ("lowest bits per byte on validation during training", "{:.4f}"),
}
"""Key of summary.json -> its label and format on the card."""
CHAT_IDS = """\
tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- zerotollm
---

# {name}

{purpose}; trained with ZeroToLLM on `{corpus}`. The format is {family}: {parameters:,} parameters in {dtype}, \
{model.num_layers} layers, width {model.width}, {model.num_heads} heads, vocabulary {model.vocab_size:,}, \
context {model.max_length:,}.

| measured | |
|---|---|
{measured}

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
ids = {ids}
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))
```

This card does not state the licence of the training text, nor the uses that the model is fit for. A model repeats \
what it has read, true or not.
"""


def model_card(
    family: Family,
    model: TransformerConfig,
    *,
    name: str,
    corpus: str,
    step: int,
    parameters: int,
    bpb: float | None,
    summary: Json | None,
    dtype: str,
    chats: bool,
) -> str:
    """Return the card as Markdown. `step` and `bpb` belong to the exported parameters, `summary` to the whole run."""
    measured = [f"| step of these parameters | {step:,} |"]
    if bpb is not None:
        measured.append(f"| bits per byte on validation at that step | {bpb:.4f} |")
    if summary:
        rows = [(*ROWS[key], summary[key]) for key in ROWS if key in summary]
        measured += [f"| {label} | {form.format(number)} |" for label, form, number in rows]
    else:
        measured += ["", "The run has no final numbers: it was imported, or is not finished."]
    pair = family.encoder_decoder
    prompt = "A sentence to translate." if pair else "In the beginning"
    return TEMPLATE.format(
        task="translation" if pair else "text-generation",
        purpose="Translates" if pair else "Answers in conversations" if chats else "Continues text",
        auto_class="AutoModelForSeq2SeqLM" if pair else "AutoModelForCausalLM",
        ids=CHAT_IDS if chats else f'tokenizer("{prompt}", return_tensors="pt")',
        name=name,
        corpus=corpus,
        family=family.name,
        parameters=parameters,
        dtype=dtype,
        model=model,
        measured="\n".join(measured),
    )
