"""Options of the actions. No heavy imports: the command line reads this file."""

from dataclasses import dataclass
from typing import Literal

from zerotollm.decoding.config import SamplingConfig
from zerotollm.interop.config import Dtype, Format


@dataclass(frozen=True)
class CheckpointOptions:
    """Which checkpoint of a run is read."""

    checkpoint: Literal["best", "last", "average"] = "best"
    """best: lowest validation loss; last: newest; average: mean of the newest train.average checkpoints, the default if
    train.average is above 1"""


@dataclass(frozen=True)
class EvaluateOptions(CheckpointOptions):
    """What is measured."""

    split: Literal["validation", "test"] = "validation"
    """the held-out documents; use test once, at the end"""
    corpus: str = ""
    """another plain text, named as data.corpus, whose split is evaluated: how far does what was learned reach?"""
    judge: str = ""
    """a .jsonl to evaluate instead of a split, or a folder of these, such as BLiMP's: each line a good and a bad text,
    or a text with a gap ___, choices and answer; measures how often the correct one is the most likely"""


@dataclass(frozen=True)
class GenerateOptions(CheckpointOptions, SamplingConfig):
    """How tokens are chosen, and by which checkpoint."""


@dataclass(frozen=True)
class ExportOptions(CheckpointOptions):
    """What is written, and where."""

    out: str = ""
    """folder to create; with --format gguf or html, the file"""
    format: Format = "huggingface"
    """huggingface: config.json, safetensors, tokenizer.json and a model card, as the transformers library loads them;
    gguf: one file, as llama.cpp reads it; peft: the adapters alone of a run with train.lora_rank, beside the base model
    that it was initialized from; numpy: a program of at most 250 lines that is this model, beside its weights; c: the
    same in C99, of about 400 lines; html: one page that runs the model, its weights in 8 bits, in any browser"""
    dtype: Dtype = "float32"
    """type of the parameters in the files; the two short ones halve them and round"""


@dataclass(frozen=True)
class ImportModelOptions:
    """What is read."""

    folder: str = ""
    """folder with config.json, safetensors and tokenizer.json of a GPT-2, Llama, Mistral, Qwen2, Qwen3, SmolLM3 or
    Marian"""


@dataclass(frozen=True)
class ChatOptions(CheckpointOptions):
    """How the model answers. All other options of sampling come from the experiment."""

    system: str = ""
    """system message at the start of the conversation; empty: none"""
    temperature: float = 0.8
    """divides the logits; 0: greedy"""
    max_tokens: int = 100
    """most tokens of an answer"""
    seed: int = 0
    """the same seed gives the same answers"""


@dataclass(frozen=True)
class ServeOptions(CheckpointOptions):
    """Address and limits of the server."""

    port: int = 8000
    """0: any free port"""
    host: str = "127.0.0.1"
    """address to listen at; the default accepts this machine only, any other address needs an api_key_file"""
    api_key_file: str = ""
    """file with the key that requests must send (Authorization: Bearer KEY); empty: no key"""
    rows: int = 16
    """texts generated at once; others wait. More rows raise the throughput and slow down each text"""
    context: int = 0
    """most tokens of a prompt and its continuation, for which every row allocates memory; 0: the model's context"""
    max_tokens: int = 0
    """most tokens that a request may ask for; 0: as many as fit into the context"""
    waiting: int = 256
    """most texts that wait for a row; further requests are refused"""
    request_bytes: int = 1_000_000
    """most bytes of a request"""


@dataclass(frozen=True)
class AblateOptions:
    """Which variants are trained, how often and how long."""

    only: str = ""
    """names of variants or of groups, separated by spaces or commas; empty: all"""
    seeds: int = 3
    """runs of the base and of each variant, with seeds from train.seed on"""
    until_shown: bool = False
    """give a variant further seeds, one by one, until its verdict is shown, or max_seeds are trained; verdicts are
    corrected for having looked so often"""
    max_seeds: int = 12
    """the most seeds of a variant, with until_shown"""
    budget: Literal["tiny", "small", "full"] = "small"
    """size of the base: full as it is, small for about a minute a run, tiny to try it out"""
    tune: bool = False
    """also compare at the best learning rate out of x 0.5, x 1 and x 2, for the base and each variant alike"""
    together: bool = False
    """train all seeds of a variant as one program, with the same results"""


@dataclass(frozen=True)
class CanariesOptions:
    """What is planted, and how many runs are trained."""

    repetitions: str = "1,10,100"
    """how often each random sequence is planted in the training text; 8 sequences of each number"""
    seeds: int = 3
    """runs, each with sequences of its own, from train.seed on; their number decides how narrow the intervals are"""


@dataclass(frozen=True)
class AttributeOptions:
    """What is looked for, and how many runs are trained."""

    text: str = ""
    """a text that the model wrote; its longest span that is in the training text is looked at. --text may be left out
    after the action"""
    seeds: int = 5
    """seeds, from train.seed on; three runs of each"""
    passages: int = 20
    """the most passages that are removed: those that have the span, then those that have the longest parts of it"""


@dataclass(frozen=True)
class TabulateOptions:
    """Where else the table is written."""

    into: str = ""
    """Markdown file: a short table replaces the lines between <!-- table BUDGET --> and <!-- end -->"""


@dataclass(frozen=True)
class SpeedrunOptions:
    """How often it is run."""

    seeds: int = 3
    """runs, with seeds from train.seed on; a record has 3 or more"""


@dataclass(frozen=True)
class PromisesOptions:
    """Which runs are looked at, and where else the table is written."""

    folder: str = "runs"
    """folder with run directories, at any depth; --folder may be left out after the action"""
    into: str = ""
    """Markdown file: the table replaces the lines between <!-- table promises --> and <!-- end -->"""


@dataclass(frozen=True)
class BenchOptions:
    """How long is measured, and against what."""

    against: Literal["nothing", "torch"] = "nothing"
    """torch: the same architecture in PyTorch, from the transformers library, alternating with ours"""
    rounds: int = 5
    """number of times each measurement is taken, alternating with all others"""
    seconds: float = 2.0
    """length of a measurement in a round, at least one step or one text"""


@dataclass(frozen=True)
class PrepareOptions:
    """How the work is divided."""

    shards: int = 64
    """parts of each split, which processes take one after the other; the same number in all processes"""
    processes: int = 0
    """processes on this machine that prepare a text of at least 50 MB; 0: one for each core, at most 4"""


@dataclass(frozen=True)
class ProfileOptions:
    """How long is traced."""

    seconds: float = 2.0
    """of train steps, at least one"""


@dataclass(frozen=True)
class PlanOptions:
    """What is planned for."""

    device: str = "this"
    """this: measured here, in seconds; or from a table: rtx2080, rtx2080ti, rtx3060, rtx3090, rtx4090, rtx5090, t4,
    v100, a100, h100, h200, apple-m2, cpu"""
    hours: float = 24.0
    """time budget for which the compute-optimal model is computed"""
    memory_gb: float = 0.0
    """memory budget in 10^9 bytes; 0: all memory of the device"""
    fit: bool = False
    """plan with the cheapest change that fits into memory, and show the command that trains with it"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """also compile the step with XLA, here and from shapes only, in seconds to minutes; auto: for this device, or for
    a mesh"""
    mesh: str = ""
    """several such devices, as in data=64 fsdp=8: memory and communication of one, and the time of a step; see
    train.mesh"""


@dataclass(frozen=True)
class ExplainOptions(CheckpointOptions):
    """What is explained."""

    text: str = ""
    """the text to analyse; --text may be left out after the action"""
    whole_run: bool = False
    """also answer the questions that need checkpoints and samples: meaning, generation, learning; a minute more"""
    judge: str = ""
    """with --whole-run True: a folder of minimal pairs, such as BLiMP's, for when each phenomenon of grammar was
    learned; a few minutes more"""
    into: str = ""
    """Markdown file: the numbers replace the lines between <!-- table questions --> and <!-- end -->"""


@dataclass(frozen=True)
class ReportOptions(CheckpointOptions):
    """What is shown."""

    text: str = ""
    """the text to analyse, its first 64 tokens; --text may be left out after the action; empty: sample.prompt"""
    judge: str = ""
    """a folder of minimal pairs, such as BLiMP's: when each phenomenon of grammar was learned; a few minutes more"""
    beside: str = ""
    """other run directories to compare with; also --with runs/a runs/b"""
