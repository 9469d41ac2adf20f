"""The data of a run: prepared, described to the reader, and written into the run directory."""

import json
from dataclasses import replace
from pathlib import Path

from zerotollm import run_directory
from zerotollm.components import dataset_of
from zerotollm.data.feed import EXAMPLES, Feed
from zerotollm.data.sources.corpora import installed
from zerotollm.data.sources.hub import pin_revisions
from zerotollm.experiment import Experiment, translates
from zerotollm.host.atomic_files import write_atomically
from zerotollm.planning.device_benchmark import trouble_here
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.prepared_sizes import note_size
from zerotollm.session.progress import Display
from zerotollm.sharding.processes import on_first


def load_data(experiment: Experiment, run_dir: Path, display: Display) -> Feed:
    """Return the batches of the experiment, prepared if they are not yet, and say what of the text is not used.

    The tokenizer, the labels and the environment are written into the run directory.
    """
    shape = experiment.data
    cache_compiled_programs(shape)
    trouble = trouble_here()
    if trouble:
        display.say(trouble)
    display.say(f"data: {shape.corpus}")
    if not experiment.train.start_from and (shape.old or experiment.train.objective in EXAMPLES):
        display.say("without --init-from it trains from scratch; --init-from runs/base initializes from base")
    feed = dataset_of(experiment, progress=display.preparing)
    on_first(lambda: note_size(experiment, feed))
    if feed.dropped:
        display.say(f"left out of {feed.corpus}: {feed.dropped}")
    if translates(experiment) and experiment.sample.prompt:
        display.say(f"samples translate: {experiment.sample.prompt}")
    texts, tokens = (sum(counts) for counts in zip((0, 0), *feed.cut.values(), strict=True))
    if texts:
        display.say(
            f"cut to data.context {shape.context}: {texts:,} texts, whose last {tokens:,} tokens are not read"
        )
    on_first(lambda: _write(experiment, feed, run_dir))
    return feed


def pinned_data(experiment: Experiment) -> Experiment:
    """Return the experiment with the commit of each data set of the Hugging Face Hub in the names of its corpora."""
    data = experiment.data
    corpus, old = (pin_revisions(data, name, installed()) for name in (data.corpus, data.old))
    return replace(experiment, data=replace(data, corpus=corpus, old=old))


def _write(experiment: Experiment, feed: Feed, run_dir: Path) -> None:
    feed.tokenizer.save(run_dir / run_directory.TOKENIZER)
    if feed.labels:
        write_atomically(run_dir / run_directory.LABELS, json.dumps(feed.labels, ensure_ascii=False) + "\n")
    known = run_directory.environment() | run_directory.note_of_start(run_dir, experiment)
    write_atomically(run_dir / run_directory.ENVIRONMENT, json.dumps(known, indent=2))
