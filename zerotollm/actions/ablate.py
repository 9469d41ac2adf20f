"""ablate: train the variants of a suite and its base with the same seeds, and tell which differences are shown."""

from collections.abc import Sequence
from pathlib import Path

from zerotollm import run_directory
from zerotollm.actions.config import AblateOptions
from zerotollm.errors import UsageError
from zerotollm.host.allocator import reuse_memory
from zerotollm.significance import Looks
from zerotollm.studies.records import check_folder, write_looks
from zerotollm.studies.results import rows_of, wide_console, write_results
from zerotollm.studies.suite import Suite, Variant
from zerotollm.studies.table import Row
from zerotollm.studies.train_suite import train_missing


def ablate(suite: Suite, run_dir: Path, options: AblateOptions) -> list[Row]:
    """Train the runs that are not finished in RUN_DIR/BUDGET, write tables and figures there, and return the rows.

    Every seed trains the base and each variant on the same data in the same order. A killed suite is resumed without
    its finished runs. A run whose loss is not finite is a result too; a variant that sees later tokens is not
    trained. Raises UsageError where the folder holds other runs, RunError where another process writes there or the
    disk is full.

    With `until_shown` a variant gets seeds until a verdict is shown, or `max_seeds` are trained: see
    `zerotollm.significance.Looks`.
    """
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}: expected at least 1")
    if options.until_shown and not 2 <= options.seeds <= options.max_seeds:
        raise UsageError(
            f"--until-shown needs 2 seeds or more, and --max-seeds no less than --seeds: they are {options.seeds} and "
            f"{options.max_seeds}"
        )
    folder, base = run_dir / options.budget, suite.base
    reuse_memory(base.data.batch_size * base.data.context * base.model.width)
    check_folder(folder)
    first = base.train.seed
    console = wide_console()

    def train(some: Suite, seeds: int) -> None:
        wanted = range(first, first + seeds)
        train_missing(folder, some, wanted, console, tune=options.tune, together=options.together)

    with run_directory.locked(folder):
        if options.until_shown:
            write_looks(folder, Looks(options.seeds, options.max_seeds))
        train(suite, options.seeds)
        for seeds in range(options.seeds + 1, options.max_seeds + 1) if options.until_shown else ():
            if not (left := undecided(suite, rows_of(folder))):
                break
            train(suite._replace(variants=left), seeds)
        return write_results(folder, console)


def undecided(suite: Suite, rows: Sequence[Row]) -> tuple[Variant, ...]:
    """Return the variants about which one of their verdicts shows nothing yet."""
    results = [(row["variant"], result) for row in rows for result in (row["shared"], row["tuned"]) if result]
    results += [(name, result["bleu_difference"]) for name, result in results if "bleu_difference" in result]
    names = {name for name, result in results if result["verdict"] == "no difference shown"}
    return tuple(variant for variant in suite.variants if variant.name in names)
