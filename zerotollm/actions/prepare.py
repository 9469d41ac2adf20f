"""prepare: make the tokens of an experiment's data before training, by one or more processes."""

from pathlib import Path

from zerotollm.actions.config import PrepareOptions
from zerotollm.components import dataset_of, tokenizer_of
from zerotollm.console import Console
from zerotollm.data.feed import EXAMPLES
from zerotollm.data.tokens.text_sources import prepare_sources, text_sources
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, translates
from zerotollm.host.cores import usable_cores
from zerotollm.session.prepared_sizes import note_size
from zerotollm.session.progress import Display


def prepare(
    experiment: Experiment, run_dir: Path, options: PrepareOptions
) -> dict[str, int | dict[str, int]]:
    """Prepare the data as training would, and return the number of training `tokens` and the `bytes` of each split.

    Processes started with the same command, here or on machines that share `data.dir`, divide the documents of a text
    among them. A killed process resumes when started again. Pairs and examples are prepared by one process while
    the others wait. `run_dir` is not touched. Raises what training raises.
    """
    if options.shards < 1:
        raise UsageError(f"--shards is {options.shards}: expected a whole number of at least 1")
    if options.processes < 0:
        raise UsageError(f"--processes is {options.processes}: expected a whole number of at least 1, or 0")
    console, made, parts = Console(soft_wrap=True), 0, 0
    if not translates(experiment) and experiment.train.objective not in EXAMPLES:
        sources = text_sources(experiment.data, tokenizer_of(experiment))
        processes = options.processes or min(4, usable_cores())
        with Display(0, console) as display:

            def progress(done: int, total: int) -> None:
                nonlocal made, parts
                made, parts = made + 1, total
                display.preparing(done, total)

            prepare_sources(
                sources, shards=options.shards, helpers=processes - 1, say=display.say, progress=progress
            )
    if made < parts:
        console.print(f"this process made {made} of {parts} parts of the text")
    feed = dataset_of(experiment)
    note_size(experiment, feed)
    console.print(
        f"{feed.corpus} is prepared: {feed.tokens:,} {'labels' if feed.labels else 'tokens'} to train on, "
        f"{feed.tokenizer.vocab_size:,} in the vocabulary"
    )
    if feed.dropped:
        console.print(f"left out of {feed.corpus}: {feed.dropped}")
    return {"tokens": feed.tokens, "bytes": feed.num_bytes}
