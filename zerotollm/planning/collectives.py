"""What devices send each other in a step, read from the program that XLA's partitioner made of it."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
"""Of types that have not 4."""


class Collective(NamedTuple):
    """One operation, as it concerns one device."""

    kind: str
    group: int
    """devices that take part"""
    spans: int
    """nodes that a group reaches over, at most"""
    sent: int
    """bytes that a device sends, with the ring algorithm"""


def collectives(hlo: str, node: int) -> Counter[Collective]:
    """How often each is done in a compiled program; `node`: devices of a node, numbered side by side."""
    bodies = _computations(hlo)
    entry = next(name for name, (is_entry, _) in bodies.items() if is_entry)
    found: Counter[Collective] = Counter()

    def visit(name: str, times: int) -> None:
        for line in bodies[name][1]:
            one = _collective(line, node)
            if one:
                found[one] += times
            for inner, turns in _called(line):
                if inner in bodies:
                    visit(inner, times * turns)

    visit(entry, 1)
    return found


def _computations(hlo: str) -> dict[str, tuple[bool, list[str]]]:
    """Name -> (whether the program begins there, its lines)."""
    bodies, lines = {}, []
    for line in hlo.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if start and not line.startswith(" "):
            lines = []
            bodies[start[2]] = (bool(start[1]), lines)
        elif line.startswith(" "):
            lines.append(line)
    return bodies


def _called(line: str) -> Iterator[tuple[str, int]]:
    """Computations that an operation runs, and how often; not the additions that a reduction is made of."""
    if " while(" in line:
        turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        body = re.search(r"body=%?([\w.-]+)", line)
        yield body[1], int(turns[1]) if turns else 1
    elif " conditional(" in line:
        for name in re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line):
            yield name, 1
    elif match := re.search(r" call\(.*to_apply=%?([\w.-]+)", line):
        yield match[1], 1


def _collective(line: str, node: int) -> Collective | None:
    match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
    if not match:
        return None
    kind = match[2]
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
    sizes = [BYTES.get(t, 4) * math.prod(map(int, filter(None, shape.split(",")))) for t, shape in shapes]
    # What an operation begun asynchronously gives is (operands, results).
    size = max(sizes) if "-start(" in line else sum(sizes)
    if kind == "collective-permute":  # which has pairs of devices, and no groups
        pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", line.partition("source_target_pairs=")[2]), int)
        spans = 1 + int((pairs // node != pairs[:, :1] // node).any()) if len(pairs) else 1
        return Collective(kind, 2, spans, size)
    groups = _groups(line)
    number = groups.shape[1]
    spans = max(len(set(group // node)) for group in groups)
    share = (number - 1) / number
    factor = {"all-reduce": 2 * share, "reduce-scatter": number - 1}.get(kind, share)
    return Collective(kind, number, spans, round(size * factor))


def _groups(line: str) -> np.ndarray:
    """Devices of each group, (groups, devices)."""
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, source = ([int(n) for n in text.split(",")] for text in (iota[1], iota[2]))
        devices = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            devices = devices.transpose([int(n) for n in iota[3].split(",")])
        return devices.reshape(shape)
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        return _along_axes(named[1], named[2])
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line)
    if listed:
        return np.array(
            [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    raise ValueError(f"cannot read the groups of devices of {line.strip()[:300]}")


def _along_axes(mesh: str, axes: str) -> np.ndarray:
    """Groups written as axes of a mesh: `'a'=2,'b'=4` and `'b'`, or `'b':(2)2`, the second of two parts of b."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    shape, places = [], {}
    taken = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        cuts = sorted((int(before), int(number)) for axis, before, number in taken if axis == name and number)
        done = 1
        for before, number in cuts:
            if before > done:
                shape.append(before // done)
            places[name, str(before)] = len(shape)
            shape.append(number)
            done = before * number
        if not cuts:
            places[name, ""] = len(shape)
        if size > done or not cuts:
            shape.append(size // done)
    chosen = [places[axis, before] for axis, before, _ in taken]
    others = [place for place in range(len(shape)) if place not in chosen]
    devices = np.arange(math.prod(shape)).reshape(shape).transpose(others + chosen)
    return devices.reshape(-1, math.prod(shape[place] for place in chosen))
