"""promises: how often the promises of finished runs held, from the summaries in a folder alone."""

from pathlib import Path

from zerotollm.actions.config import PromisesOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.studies.markdown_page import write_tables
from zerotollm.studies.promise_calibration import (
    Outcomes,
    headline,
    lines,
    markdown,
    read_outcomes,
    terminal_table,
)
from zerotollm.studies.results import wide_console


def promises(experiment: Experiment, run_dir: Path, options: PromisesOptions) -> Outcomes:
    """Show the calibration of all runs below `options.folder`, and return their outcomes. Neither argument is read.

    Raises UsageError where there is no folder or no finished run with a promise in it, or `options.into` has no place
    for the table.
    """
    folder = Path(options.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one with run directories, as in promises runs")
    outcomes = read_outcomes(folder)
    if not outcomes.judged:
        others = [f"{len(names)} {words}" for words, names in outcomes.left_out().items()]
        raise UsageError(
            f"{folder} holds no finished run with a promise"
            + (f" ({', '.join(others)})" if others else "")
            + ": train one, or name another folder"
        )
    console = wide_console()
    console.print(headline(outcomes))
    console.print(terminal_table(outcomes))
    for line in lines(outcomes):
        console.print(line)
    if options.into:
        page = Path(options.into)
        write_tables(page, {"promises": markdown(outcomes)})
        console.print(f"written: {page}")
    return outcomes
