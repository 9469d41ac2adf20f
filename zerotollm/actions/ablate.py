"""ablate: train the variants of a suite and its base with the same seeds, and tell which differences are shown."""

from pathlib import Path

from zerotollm import run_directory
from zerotollm.actions.config import AblateOptions
from zerotollm.errors import UsageError
from zerotollm.host.allocator import reuse_memory
from zerotollm.studies.records import check_folder
from zerotollm.studies.results import wide_console, write_results
from zerotollm.studies.suite import Suite
from zerotollm.studies.table import Row
from zerotollm.studies.train_suite import train_missing


def ablate(suite: Suite, run_dir: Path, options: AblateOptions) -> list[Row]:
    """Train the runs that are not finished in RUN_DIR/BUDGET, write tables and figures there, and return the rows.

    Every seed trains the base and each variant on the same data in the same order. A killed suite is resumed without
    its finished runs. A run whose loss is not finite is a result too; a variant that sees later tokens is not
    trained. Raises UsageError where the folder holds other runs, RunError where another process writes there or the
    disk is full.
    """
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}: expected at least 1")
    folder, base = run_dir / options.budget, suite.base
    reuse_memory(base.data.batch_size * base.data.context * base.model.width)
    check_folder(folder)
    seeds = range(base.train.seed, base.train.seed + options.seeds)
    console = wide_console()
    with run_directory.locked(folder):
        train_missing(folder, suite, seeds, console, tune=options.tune, together=options.together)
        return write_results(folder, console)
