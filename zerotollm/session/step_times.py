"""Where the time of a traced train step goes: by part of the model, and the longest operations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from zerotollm.planning.hlo import Operation
from zerotollm.types import Json

LONGEST = 10
"""Operations shown one by one."""


class OperationTime(NamedTuple):
    """Time of one operation of the program, per step."""

    name: str
    seconds: float
    operation: Operation


class PartTime(NamedTuple):
    """Time of one part of the model, per step."""

    forward: float
    """seconds, the update included"""
    backward: float
    products: float
    """of these seconds, in matrix products"""
    flops: float
    """of the products"""
    moved: float
    """bytes read and written by all other operations"""

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def others(self) -> float:
        """Seconds outside of matrix products."""
        return self.seconds - self.products


def operation_times(
    events: Sequence[Json], module: str, operations: Mapping[str, Operation]
) -> list[OperationTime]:
    """Return the mean time of each operation in the steps of a trace, longest first.

    An operation in a loop has the time of all its iterations. Without events of `module` the list is empty.
    """
    ours = [e for e in events if e.get("ph") == "X" and e.get("args", {}).get("hlo_module") == module]
    steps = len({event["args"].get("run_id") for event in ours})
    microseconds: defaultdict[str, float] = defaultdict(float)
    for event in ours:
        microseconds[event["args"].get("hlo_op", "")] += event["dur"]
    times = [
        OperationTime(name, total / steps / 1e6, operations[name])
        for name, total in microseconds.items()
        if name in operations
    ]
    return sorted(times, key=lambda time: -time.seconds)


def part_times(times: Sequence[OperationTime]) -> dict[str, PartTime]:
    """Return the time of every part of the model, longest first."""
    parts: defaultdict[str, PartTime] = defaultdict(lambda: PartTime(0.0, 0.0, 0.0, 0.0, 0.0))
    for _, seconds, operation in times:
        product = bool(operation.products)
        more = PartTime(
            forward=seconds * (not operation.backward),
            backward=seconds * operation.backward,
            products=seconds * product,
            flops=operation.flops,
            moved=operation.moved * (not product),
        )
        parts[operation.part] = PartTime(*map(sum, zip(parts[operation.part], more, strict=True)))
    return dict(sorted(parts.items(), key=lambda item: -item[1].seconds))


def part_table(parts: Mapping[str, PartTime], flops: float, bandwidth: float) -> Table:
    """Return a table of milliseconds per step. `flops` and `bandwidth` are the device's best, in FLOP/s and bytes/s."""
    caption = (
        f"a large product reaches {flops / 1e9:,.0f} GFLOP/s, a large array is read and written at "
        f"{bandwidth / 1e9:,.0f} GB/s; caches are faster"
    )
    columns = ("ms per step", "forward", "backward", "products", "GFLOP/s", "others", "GB/s", "share")
    table = Table(columns[0], box=None, pad_edge=False, caption=caption, caption_justify="left")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    total = PartTime(*map(sum, zip(*parts.values(), strict=True)))
    for name, part in {**parts, "all": total}.items():
        table.add_row(
            name,
            f"{part.forward * 1e3:.2f}",
            f"{part.backward * 1e3:.2f}",
            f"{part.products * 1e3:.2f}",
            _rate(part.flops, part.products),
            f"{part.others * 1e3:.2f}",
            _rate(part.moved, part.others),
            f"{part.seconds / total.seconds:.0%}",
        )
    return table


def longest_table(times: Sequence[OperationTime]) -> Table:
    """Return a table of the longest operations, equal ones of several layers in one row."""
    same: defaultdict[tuple[str, bool, str], list[OperationTime]] = defaultdict(list)
    for time in times:
        same[time.operation.part, time.operation.backward, str(time.operation)].append(time)
    table = Table("longest operations", "", box=None, pad_edge=False)
    for column in ("number", "ms per step", "GFLOP/s"):
        table.add_column(column, justify="right")
    rows = sorted(same.items(), key=lambda item: -sum(time.seconds for time in item[1]))
    for (part, backward, text), group in rows[:LONGEST]:
        seconds = sum(time.seconds for time in group)
        rate = _rate(sum(time.operation.flops for time in group), seconds)
        table.add_row(
            part + (", backward" if backward else ""), text, f"{len(group)}", f"{seconds * 1e3:.2f}", rate
        )
    return table


def _rate(amount: float, seconds: float) -> str:
    """Return billions per second, or nothing of nothing."""
    return f"{amount / seconds / 1e9:,.0f}" if amount and seconds > 0 else ""
