"""Communication between devices in a step, read from the program (HLO) of XLA's partitioner."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zerotollm.planning.hlo import computations, type_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One operation, seen from one device."""

    kind: str
    group: int
    """devices that take part"""
    spans: int
    """most nodes of a group"""
    sent: int
    """bytes that a device sends, with the ring algorithm"""


def collectives(hlo: str, node: int) -> Counter[Collective]:
    """Return how often a compiled program runs each collective. `node` is the number of devices of a node, which have
    consecutive numbers."""
    entry, lines = computations(hlo)
    counts: Counter[Collective] = Counter()

    def visit(name: str, times: int) -> None:
        for line in lines[name]:
            if collective := _collective(line, node):
                counts[collective] += times
            for inner, iterations in _called(line):
                if inner in lines:
                    visit(inner, times * iterations)

    visit(entry, 1)
    return counts


def _called(line: str) -> Iterator[tuple[str, int]]:
    """Yield the computations that an operation runs, and how often; not the addition of a reduction."""
    if (body := re.search(r"body=%?([\w.-]+)", line)) and " while(" in line:
        count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        yield body[1], int(count[1]) if count else 1
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
    sizes = type_bytes(match[1])
    # The start of an asynchronous operation returns (operands, results).
    size = max(sizes) if "-start(" in line else sum(sizes)
    if kind == "collective-permute":  # has pairs of devices, and no groups
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
    """Return the devices of each group: (groups, devices)."""
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, source = ([int(n) for n in text.split(",")] for text in (iota[1], iota[2]))
        devices = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            devices = devices.transpose([int(n) for n in iota[3].split(",")])
        return devices.reshape(shape)
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        return _along_axes(named[1], named[2])
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(n) for n in group.split(",")] for group in groups])
    raise ValueError(f"cannot read the groups of devices of {line.strip()[:300]}")


def _along_axes(mesh: str, axes: str) -> np.ndarray:
    """Return the groups along axes of a mesh: `'a'=2,'b'=4` and `'b'`, or `'b':(2)2`, the second of two parts of b."""
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
