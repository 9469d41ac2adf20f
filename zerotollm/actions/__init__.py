"""The verbs of the command line, one file each. Only `zerotollm.cli` imports them, each when it is asked for."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

from zerotollm.actions import config
from zerotollm.experiment import Experiment
from zerotollm.training.config import default_checkpoint


class Action(NamedTuple):
    """What the command line must know of an action before it imports it.

    The function is `zerotollm.actions.NAME.NAME(experiment, run_dir, *functions[, options])`. For a suite it is
    `NAME(suite, run_dir, options)`, with a `zerotollm.studies.suite.Suite` and `AblateOptions`.
    """

    summary: str
    options: Callable[[Experiment], object] | None = None
    """returns the default options, a frozen dataclass; None: the action has none"""
    reads_run: bool = False
    """reads a run directory, whose config.json is the experiment"""
    functions: tuple[str, ...] = ()
    """functions of the experiment's file, besides `experiment`, that the action needs (`budget` is optional). It is the
    default action of a file that has them all"""
    text_option: str = ""
    """option whose value may follow the action's name"""
    suite: bool = False
    """works on an experiment and its variants"""
    reads_folder: bool = False
    """reads a folder of run directories, and needs no experiment; its `text_option` names the folder"""


ACTIONS: dict[str, Action] = {
    "train": Action("train, or resume an unfinished run (the default)"),
    "scale": Action(
        "train a ladder of sizes, fit a scaling law, test its prediction (the default of experiments with a ladder)",
        functions=("ladder", "next_size"),
    ),
    "generate": Action(
        "continue or translate a text with the trained model",
        lambda experiment: config.GenerateOptions(
            **asdict(experiment.sample), checkpoint=default_checkpoint(experiment.train)
        ),
        reads_run=True,
        text_option="prompt",
    ),
    "evaluate": Action(
        "measure loss and bits per byte on a whole split, for translations BLEU and chrF too",
        lambda experiment: config.EvaluateOptions(default_checkpoint(experiment.train)),
        reads_run=True,
    ),
    "explain": Action(
        "measure on one text why it is split so, what a vector means, how the model predicts, where it attends",
        lambda experiment: config.ExplainOptions(default_checkpoint(experiment.train)),
        reads_run=True,
        text_option="text",
    ),
    "report": Action(
        "write one HTML file about a run: curves, all answers of explain with interactive figures, other runs",
        lambda experiment: config.ReportOptions(default_checkpoint(experiment.train)),
        reads_run=True,
        text_option="text",
    ),
    "chat": Action(
        "talk to the trained model on the terminal",
        lambda experiment: config.ChatOptions(
            default_checkpoint(experiment.train),
            temperature=experiment.sample.temperature,
            max_tokens=experiment.sample.max_tokens,
            seed=experiment.sample.seed,
        ),
        reads_run=True,
    ),
    "serve": Action(
        "answer requests in OpenAI's protocol, with a page to talk to the trained model",
        lambda experiment: config.ServeOptions(default_checkpoint(experiment.train)),
        reads_run=True,
    ),
    "export": Action(
        "write the trained model for transformers, llama.cpp or peft, or as a program: NumPy, C or a web page",
        lambda experiment: config.ExportOptions(default_checkpoint(experiment.train)),
        reads_run=True,
    ),
    "import-model": Action(
        "make a run directory of a model that transformers saved", lambda _: config.ImportModelOptions()
    ),
    "plan": Action(
        "estimate memory and time, on this device or another, before training", lambda _: config.PlanOptions()
    ),
    "bench": Action(
        "measure speed and memory of training and of generation", lambda _: config.BenchOptions()
    ),
    "profile": Action("trace train steps, for https://ui.perfetto.dev", lambda _: config.ProfileOptions()),
    "prepare": Action(
        "only prepare the tokens; several processes started at once share the work",
        lambda _: config.PrepareOptions(),
    ),
    "bench-data": Action("measure tokens/s of tokenization and of the data pipeline"),
    "ablate": Action(
        "train the variants of an experiment and test which differences are significant",
        lambda _: config.AblateOptions(),
        functions=("budget", "variants"),
        suite=True,
    ),
    "canaries": Action(
        "plant random sequences in the training text, and measure how often a model must read one to remember it",
        lambda _: config.CanariesOptions(),
    ),
    "attribute": Action(
        "train without the passages that a text may be from: are they why the model knows it?",
        lambda _: config.AttributeOptions(),
        text_option="text",
    ),
    "speedrun": Action(
        "train several seeds to a target loss and write their times as a record (the default of such experiments)",
        lambda _: config.SpeedrunOptions(),
        functions=("target",),
    ),
    "tabulate": Action(
        "rewrite the tables and figures of finished ablations, or the table of a speedrun's records",
        lambda _: config.TabulateOptions(),
    ),
    "promises": Action(
        "show how often the time, memory and loss that runs foretold before they started were right",
        lambda _: config.PromisesOptions(),
        text_option="folder",
        reads_folder=True,
    ),
}
