"""The files of an exported run, in each format."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from zerotollm import run_directory
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.errors import UsageError
from zerotollm.experiment import translates
from zerotollm.interop.card import model_card
from zerotollm.interop.chat_template import chat_template, expresses_training
from zerotollm.interop.config import Dtype, Format
from zerotollm.interop.gguf_file import write_gguf
from zerotollm.interop.huggingface import family_of, write_folder
from zerotollm.interop.peft_folder import write_adapters
from zerotollm.model.build import Params
from zerotollm.programs.c_program import write_c
from zerotollm.programs.html_program import check_page, write_html
from zerotollm.programs.numpy_program import write_numpy
from zerotollm.run import Run
from zerotollm.session.model_page import page_facts


@dataclass(frozen=True)
class Exported:
    """A model that was written for other programs. It is a path: `Path(exported)` and `open(exported)` work."""

    path: Path
    sentence: str
    """what was written, and how it is used"""

    def show(self) -> str:
        """Return the sentence, and below it the files with their sizes in bytes."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        sizes = [f"{file}  {file.stat().st_size:,}" for file in files if file.is_file()]
        return "\n".join([self.sentence, *sizes])

    def save(self, path: str | Path) -> Path:
        """Copy the files to a new folder or file and return it. Raises UsageError if it exists."""
        path = Path(path)
        if path.exists():
            raise UsageError(f"{path} exists already: give another name, or delete it")
        (shutil.copytree if self.path.is_dir() else shutil.copy2)(self.path, path)
        return path

    def __fspath__(self) -> str:
        return str(self.path)


def write_export(run: Run, out: Path, form: Format, dtype: Dtype) -> Exported:
    """Write a run to a new folder or file, and return what was written.

    Raises UsageError if the format has no such model.
    """
    run.require_built_in_model("export")
    if form in ("numpy", "c", "html"):
        return Exported(out, _write_program(run, out, form, dtype))
    experiment, family = run.experiment, family_of(run.model_config)
    what, reader = f"{run.num_parameters:,} parameters", "transformers loads it with from_pretrained"
    if form == "peft":
        write_adapters(out, _adapters(run), run.experiment.train, family, run.model_config, dtype)
        what = f"adapters of rank {run.experiment.train.lora_rank}"
        reader = f"peft loads them with PeftModel.from_pretrained on the export of {run.experiment.train.start_from}"
    elif form == "gguf":
        write_gguf(
            out,
            run.params,
            run.model_config,
            family,
            run.tokenizer,
            name=experiment.name,
            dtype=dtype,
            chat_template=_chat_template(run, escaped=False),
        )
        reader = "llama.cpp reads it"
    else:
        template = _chat_template(run, escaped=True)
        card = model_card(
            family,
            run.model_config,
            name=experiment.name,
            corpus=experiment.data.corpus,
            step=run.step,
            parameters=run.num_parameters,
            bpb=run.validation_bpb,
            summary=run_directory.read_summary(run.path),
            dtype=dtype,
            chats=template is not None,
        )
        write_folder(
            out, run.params, run.model_config, run.tokenizer, card, dtype=dtype, chat_template=template
        )
    return Exported(out, f"{out}: {family.architecture}, {what} of step {run.step:,} in {dtype}; {reader}")


def _write_program(run: Run, out: Path, form: Format, dtype: Dtype) -> str:
    """Write the model as a program in NumPy or C, or as a page."""
    if run.labels:
        raise UsageError(
            f"{run.path} holds a model that labels texts, and a program writes text: leave --format out"
        )
    if dtype != "float32":
        raise UsageError(f"--format {form} has its own types of numbers: leave --dtype out")
    name = run.experiment.name
    if form == "html":
        how = _export_page(run, out)
    elif form == "c":
        write_c(out, run.params, run.model_config, run.tokenizer, title=name)
        source, program = (shlex.quote(str(out / name)) for name in ("model.c", "model"))
        how = f"compile it with cc -O3 -ffast-math {source} -o {program} -lm"
    else:
        write_numpy(out, run.params, run.model_config, run.tokenizer, title=name)
        how = f'run it with python {out}/model.py "In the beginning"'
    return f"{out}: {run.num_parameters:,} parameters of step {run.step:,}; {how}"


def _export_page(run: Run, out: Path) -> str:
    """Write the model as a page, and return how to use it and what was measured of its 8 bits."""
    check_page(out, run.model_config, run.tokenizer, translates=translates(run.experiment))
    facts = page_facts(run)
    write_html(out, run.params, run.model_config, run.tokenizer, facts)
    measured = "not compared with float32, as the held-out text is not here"
    if facts.agreement:
        measured = (
            f"its likeliest token is float32's in {100 * facts.agreement.share:.2f} % of "
            f"{facts.agreement.positions:,} held-out positions"
        )
    return f"8 bits each, {measured}; open it in a browser"


def _chat_template(run: Run, *, escaped: bool) -> str | None:
    """Return the template of the form of conversations that the model has learned; None where there is none."""
    tokenizer = run.tokenizer
    if run.trained_on_conversations:
        return chat_template(tokenizer, escaped=escaped) if expresses_training(tokenizer) else None
    template = tokenizer.chat_template if isinstance(tokenizer, PretrainedTokenizer) else None
    return template.source if template else None


def _adapters(run: Run) -> Params:
    """Return the run's adapters. Raises UsageError where it has none, or has trained other parameters besides."""
    train = run.experiment.train
    if run.adapters is None:
        raise UsageError(
            f"{run.path} has no adapters: it was trained without train.lora_rank; leave --format out"
        )
    if train.trainable or run.labels:
        besides = "a classification head" if run.labels else f"train.trainable {train.trainable!r}"
        raise UsageError(
            f"{run.path} has trained {besides} besides its adapters: export the merged model, without --format peft"
        )
    return run.adapters
