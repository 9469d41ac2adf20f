"""tabulate: write the tables and figures of a suite again, from its finished runs alone, and show the table."""

from pathlib import Path

from zerotollm.actions.config import TabulateOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.studies.markdown_page import write_tables
from zerotollm.studies.results import page_markdown, wide_console, write_results
from zerotollm.studies.speedrun import holds_records, markdown, read_records, terminal_table
from zerotollm.studies.table import Row


def tabulate(experiment: Experiment, run_dir: Path, options: TabulateOptions) -> dict[str, list[Row]]:
    """Write the results of a folder of runs, or of every such folder in a suite's run directory.

    Return their rows by the folder's name; records of a speedrun give one table, and no rows. The same runs give the
    same bytes, with the same versions of the packages that draw. Raises UsageError where there are no runs, or
    `options.into` has no place for their table.
    """
    if holds_records(run_dir):
        return _tabulate_speedrun(run_dir, options)
    if any(run_dir.glob("*/seed-*.json")):
        folders = [run_dir]
    else:
        folders = sorted({path.parents[1] for path in run_dir.glob("*/*/seed-*.json")})
    if not folders:
        raise UsageError(
            f"{run_dir} holds no finished run of a suite: train one with ablate, or name its --run-dir"
        )
    console = wide_console()
    results = {folder.name: write_results(folder, console) for folder in folders}
    if options.into:
        page = Path(options.into)
        write_tables(page, {name: page_markdown(rows) for name, rows in results.items()})
        console.print(f"written: {page}")
    return results


def _tabulate_speedrun(folder: Path, options: TabulateOptions) -> dict[str, list[Row]]:
    """Show the table of a speedrun's records, and write it into the page; there are no rows of a suite."""
    console, records = wide_console(), read_records(folder)
    console.print(terminal_table(records))
    if options.into:
        page = Path(options.into)
        write_tables(page, {folder.name: markdown(records)})
        console.print(f"written: {page}")
    return {}
