"""The verbs of the command line, one file each. Nothing is imported before it is asked for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured."""

    split: Literal["validation", "test"] = "validation"
    """the held-out documents; look at test once, at the end"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """best: lowest loss on validation; last: newest; average: mean of the newest train.average, for which it is the
    default where that is above 1"""
    judge: str = ""
    """a .jsonl instead of a split: each line a good and a bad text, or a text with a gap ___, choices and answer; how
    often the likeliest is right"""


@dataclass(frozen=True)
class GenerateOptions(SamplingConfig):
    """Which continuation is drawn, and by which parameters."""

    checkpoint: Literal["best", "last", "average"] = "best"
    """as of evaluate"""


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and where."""

    out: str = ""
    """folder to be made"""
    format: Literal["huggingface"] = "huggingface"
    """huggingface: config.json, safetensors, tokenizer.json and a model card, as the transformers library loads them"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """best: lowest loss on validation; last: newest; average: mean of the newest train.average, for which it is the
    default where that is above 1"""


@dataclass(frozen=True)
class ImportModelOptions:
    """What is read."""

    folder: str = ""
    """folder with config.json, safetensors and tokenizer.json of a GPT-2, Llama, Qwen2, Qwen3 or Marian"""


@dataclass(frozen=True)
class ChatOptions:
    """How it answers. What is not said here is as in the experiment's sample."""

    system: str = ""
    """what the conversation begins with; empty: nothing"""
    temperature: float = 0.8
    """divides the logits; 0: greedy"""
    max_tokens: int = 100
    """most tokens of an answer"""
    seed: int = 0
    """same seed, same answers"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """as of evaluate"""


@dataclass(frozen=True)
class ServeOptions:
    """Where the server is, and what it bears."""

    port: int = 8000
    """0: any that is free"""
    host: str = "127.0.0.1"
    """address to listen at; the default is this machine alone, and any other needs an api_key_file"""
    api_key_file: str = ""
    """file that holds the key which requests must bring (Authorization: Bearer KEY); empty: none is asked for"""
    rows: int = 16
    """texts written at once; others wait. More are faster together, and each alone slower"""
    context: int = 0
    """most tokens of a text with its prompt, for which memory is held in every row; 0: the model's context"""
    max_tokens: int = 0
    """most tokens that a request may ask for; 0: as many as the context holds"""
    waiting: int = 256
    """most texts that wait for a row; further requests are turned away"""
    request_bytes: int = 1_000_000
    """most bytes of a request"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """as of evaluate"""


@dataclass(frozen=True)
class AblateOptions:
    """Which variants are trained, how often and how long."""

    only: str = ""
    """variants or groups of them, by name, with spaces or commas between; empty: all"""
    seeds: int = 3
    """runs of the base and of each variant, from train.seed on"""
    budget: Literal["tiny", "small", "full"] = "small"
    """size of the base: full as it is, small for a minute or so a run, tiny to see it work"""
    tune: bool = False
    """also compare at the best of the learning rates x 0.5, 1 and 2, of base and variants alike"""
    together: bool = False
    """train all seeds of a variant at once, as one program: the same results"""


@dataclass(frozen=True)
class TabulateOptions:
    """Where else the table goes."""

    into: str = ""
    """Markdown file: what stands there between the lines <!-- table BUDGET --> and <!-- end --> is replaced by a short
    table"""


@dataclass(frozen=True)
class BenchOptions:
    """How long is measured, and against what."""

    against: Literal["nothing", "torch"] = "nothing"
    """torch: the same architecture in PyTorch from the transformers library, in turn with ours"""
    rounds: int = 5
    """times that each measurement is taken, in turn with all others"""
    seconds: float = 2.0
    """length of a measurement in a round, at least one step or one text"""


@dataclass(frozen=True)
class PrepareOptions:
    """How the work is cut."""

    shards: int = 64
    """parts of each split that processes take one after the other; the same in all of them"""


@dataclass(frozen=True)
class ProfileOptions:
    """How long is traced."""

    seconds: float = 2.0
    """of train steps, at least one"""


@dataclass(frozen=True)
class PlanOptions:
    """What is planned for."""

    device: str = "this"
    """this: measured here, in seconds; or rtx2080, rtx2080ti, rtx3060, rtx3090, rtx4090, rtx5090, t4, v100, a100,
    h100, h200, apple-m2, cpu: looked up"""
    hours: float = 24.0
    """time for which the compute-optimal model is sought"""
    memory_gb: float = 0.0
    """budget in 10^9 bytes; 0: all memory of the device"""
    fit: bool = False
    """plan with the cheapest change that makes it fit, and say with which command to train so"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """ask XLA too, which compiles the step here from shapes alone, in seconds to minutes; auto: for this device, or
    for a mesh"""
    mesh: str = ""
    """many such devices, as in data=64 fsdp=8: memory and messages of one, and the time of a step; see train.mesh"""


@dataclass(frozen=True)
class ExplainOptions:
    """What is explained."""

    text: str = ""
    """the text to look at; may stand without --text after the action"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """as of evaluate"""
    whole_run: bool = False
    """also answer what takes checkpoints and samples: meaning, generation, learning; a minute or so more"""
    into: str = ""
    """Markdown file: what stands there between the lines <!-- table questions --> and <!-- end --> is replaced by the
    numbers"""


@dataclass(frozen=True)
class ReportOptions:
    """What is shown."""

    text: str = ""
    """the text to look at, its first 64 tokens; may stand without --text after the action; empty: sample.prompt"""
    beside: str = ""
    """other run directories to compare with; may be written --with runs/a runs/b"""
    checkpoint: Literal["best", "last", "average"] = "best"
    """as of evaluate"""


def _checkpoint(experiment: Experiment) -> Literal["best", "average"]:
    return "average" if experiment.train.average > 1 else "best"


class Action(NamedTuple):
    """What the command line must know of an action before it imports it.

    The function itself is `zerotollm.actions.NAME.NAME(experiment, run_dir, *functions[, options])`; of a `suite`,
    `NAME(suite, run_dir, options)` with a `zerotollm.studies.suite.Suite`, and the options have a `budget` and `only`.
    """

    summary: str
    options: Callable[[Experiment], Any] | None = None
    """the options as they stand before the command line changes them: a frozen dataclass"""
    reads_run: bool = False
    """works on a run directory, whose own config.json then says what the experiment is"""
    functions: tuple[str, ...] = ()
    """of the experiment's file besides `experiment`: where all of them are, this action is the default. It needs them,
    but for `budget`"""
    word: str = ""
    """the option that a text after the action's name is"""
    suite: bool = False
    """works on an experiment and its variants, made by the file's `functions`"""


ACTIONS: dict[str, Action] = {
    "train": Action("train, or go on where the last run of it stopped (the default)"),
    "scale": Action(
        "train a ladder of sizes, fit a scaling law, test its prediction (the default where there is a ladder)",
        functions=("ladder", "next_size"),
    ),
    "generate": Action(
        "continue or translate a text with the trained model",
        lambda experiment: GenerateOptions(**asdict(experiment.sample), checkpoint=_checkpoint(experiment)),
        True,
        word="prompt",
    ),
    "evaluate": Action(
        "loss and bits per byte over a whole split, of translations BLEU and chrF too",
        lambda experiment: EvaluateOptions(checkpoint=_checkpoint(experiment)),
        True,
    ),
    "explain": Action(
        "why the text is split so, what a vector is, how it predicts, where it looks: measured on one text",
        lambda experiment: ExplainOptions(checkpoint=_checkpoint(experiment)),
        True,
        word="text",
    ),
    "report": Action(
        "one HTML file of a run: its curves, all answers with figures to turn and hover over, other runs beside it",
        lambda experiment: ReportOptions(checkpoint=_checkpoint(experiment)),
        True,
        word="text",
    ),
    "chat": Action(
        "talk to the trained model on the terminal",
        lambda experiment: ChatOptions(
            temperature=experiment.sample.temperature,
            max_tokens=experiment.sample.max_tokens,
            seed=experiment.sample.seed,
            checkpoint=_checkpoint(experiment),
        ),
        True,
    ),
    "serve": Action(
        "answer requests in OpenAI's protocol, and show a page to talk to the trained model",
        lambda experiment: ServeOptions(checkpoint=_checkpoint(experiment)),
        True,
    ),
    "export": Action(
        "write the trained model as a folder that transformers loads",
        lambda experiment: ExportOptions(checkpoint=_checkpoint(experiment)),
        True,
    ),
    "import-model": Action(
        "make a run directory of a model that transformers saved", lambda _: ImportModelOptions()
    ),
    "plan": Action("does it fit this device or another, and how long will it take", lambda _: PlanOptions()),
    "bench": Action("speed and memory of training and of generation", lambda _: BenchOptions()),
    "profile": Action("a trace of train steps, for https://ui.perfetto.dev", lambda _: ProfileOptions()),
    "prepare": Action(
        "make the tokens and nothing else; started several times at once, the processes share the work",
        lambda _: PrepareOptions(),
    ),
    "bench-data": Action("tokens/s of tokenization and of the data pipeline"),
    "ablate": Action(
        "train an experiment's variants and say which differences are shown",
        lambda _: AblateOptions(),
        functions=("budget", "variants"),
        suite=True,
    ),
    "tabulate": Action(
        "write the tables and figures of finished ablations again", lambda _: TabulateOptions()
    ),
}
