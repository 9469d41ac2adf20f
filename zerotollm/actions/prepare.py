"""prepare: the tokens of an experiment's data, made ahead of training, by as many processes as are started."""

from pathlib import Path
from typing import Any

from zerotollm.actions.config import PrepareOptions
from zerotollm.components import dataset_of, tokenizer_of
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, translates


def prepare(experiment: Experiment, run_dir: Path, options: PrepareOptions) -> dict[str, Any]:
    """Makes what training would make of the data first. Leaves `run_dir` alone.

    Started several times with the same command, here or on machines that share `data.dir`, the processes split the
    documents of a text among them; killed and started again, it goes on. Pairs and examples one process makes, and the
    others wait. Returns `tokens`, to train on, and `bytes`. Raises as training does.
    """
    if options.shards < 1:
        raise UsageError(f"--shards is {options.shards}: take at least 1")
    # Imported here: the command line reads the name of this action without waiting.
    from zerotollm.console import Console
    from zerotollm.data.feed import EXAMPLES
    from zerotollm.data.tokens.shards import prepare_in_shards

    console = Console(highlight=False, soft_wrap=True)
    if not translates(experiment) and experiment.train.objective not in EXAMPLES:
        tokenizer = tokenizer_of(experiment)
        prepare_in_shards(experiment.data, tokenizer, shards=options.shards, say=console.print)
    feed = dataset_of(experiment)
    console.print(
        f"{feed.corpus} is prepared: {feed.tokens:,} {'labels' if feed.labels else 'tokens'} to train on, "
        f"{feed.tokenizer.vocab_size:,} in the vocabulary"
    )
    if feed.dropped:
        console.print(f"left out of {feed.corpus}: {feed.dropped}")
    return {"tokens": feed.tokens, "bytes": feed.num_bytes}
