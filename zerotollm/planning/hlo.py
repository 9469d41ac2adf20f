"""XLA's compiled program as text (HLO): its computations, and what each operation computes and moves.

An operation belongs to a part of the model by the name scopes of the code that it was compiled from.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
"""Size of a number, by type; 4 for every other type."""
CONTAINERS = ("while", "conditional", "call")
"""Operations that run other computations: their time is that of the operations inside."""

PARTS = {
    "optimizer": "optimizer",
    "head": "head",
    "loss": "loss",
    "rope": "rope",
    "scores": "attention: scores, mixing",
    "mix_values": "attention: scores, mixing",
    "attend": "attention: scores, mixing",
    "attention": "attention: projections",
    "cross_attention": "attention: projections",
    "feed_forward": "feed-forward",
    "embed": "embedding",
}
"""Part of the model by name scope, the first that an operation has."""
NORMS, OTHER = "norms", "residuals, metrics, other"

Shape = tuple[int, ...]


class Product(NamedTuple):
    """A matrix product: shapes of operands and result, and the axes of each operand."""

    left: Shape
    right: Shape
    result: Shape
    contracted: tuple[Shape, Shape]
    batched: tuple[Shape, Shape]

    @property
    def flops(self) -> int:
        """2 x (size of the result) x (length of the contracted axes)."""
        return 2 * math.prod(self.result) * math.prod(self.left[axis] for axis in self.contracted[0])

    def __str__(self) -> str:
        """Return rows x columns over the contracted length, times the number of products in a batch."""
        length = math.prod(self.left[axis] for axis in self.contracted[0])
        batch = math.prod(self.left[axis] for axis in self.batched[0])
        rows = math.prod(self.left) // (length * batch)
        columns = math.prod(self.right) // (length * batch)
        return f"{rows} x {columns} over {length}" + (f", {batch} times" if batch > 1 else "")


class Operation(NamedTuple):
    """One operation of a program; a fusion is one."""

    kind: str
    """such as fusion, dot, copy"""
    part: str
    """of the model"""
    backward: bool
    products: tuple[Product, ...]
    moved: int
    """bytes of operands and results: an upper bound where only a slice of an operand is read"""

    def __str__(self) -> str:
        """Return its products, or else its kind."""
        return "; ".join(map(str, self.products)) or self.kind

    @property
    def flops(self) -> int:
        """Floating-point operations of its matrix products."""
        return sum(product.flops for product in self.products)


class _Line(NamedTuple):
    """An operation as printed."""

    name: str
    type: str
    kind: str
    operands: list[str]
    text: str


def computations(hlo: str) -> tuple[str, dict[str, list[str]]]:
    """Return the name of the entry computation, and the lines of every computation."""
    entry, lines = "", []
    found: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        if line.startswith(" "):
            lines.append(line)
        elif start := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            entry = start[2] if start[1] else entry
            lines = found[start[2]] = []
    return entry, found


def type_bytes(text: str) -> list[int]:
    """Return the bytes of each array in a printed type, as `f32[4,8]{1,0}` or a tuple of such."""
    return [BYTES.get(kind, 4) * math.prod(_numbers(shape)) for kind, shape in _arrays(text)]


def module_name(hlo: str) -> str:
    """Return the name of the program, such as jit_train_step."""
    match = re.match(r"HloModule ([\w.-]+)", hlo)
    return match[1] if match else ""


def operations(hlo: str) -> dict[str, Operation]:
    """Return every operation by its name, without those inside of fusions and without `CONTAINERS`."""
    _, texts = computations(hlo)
    lines = {name: list(_lines(text)) for name, text in texts.items()}
    fused = {
        name for text in texts.values() for line in text for name in re.findall(r" calls=%?([\w.-]+)", line)
    }
    result = {}
    for name in lines.keys() - fused:
        types = {line.name: line.type for line in lines[name]}
        for line in lines[name]:
            if line.kind in CONTAINERS:
                continue
            called = re.search(r" calls=%?([\w.-]+)", line.text)
            products = (
                _products(lines[called[1]]) if called and called[1] in lines else _products([line], types)
            )
            scope = re.search(r'op_name="([^"]*)"', line.text)
            scopes = scope[1] if scope else ""
            moved = [line.type, *(types.get(operand, "") for operand in line.operands)]
            result[line.name] = Operation(
                line.kind,
                part_of(scopes),
                "transpose(" in scopes,
                tuple(products),
                sum(size for text in moved for size in type_bytes(text)),
            )
    return result


def part_of(scopes: str) -> str:
    """Return the part of the model that the name scopes of an operation stand for."""
    # jvp(loss)/head, Transformer.embed, attention.attend
    names = [name.rpartition(".")[2].lstrip("_") for name in re.findall(r"[\w.]+", scopes)]
    if any(name.endswith("norm") for name in names):
        return NORMS
    return next((part for scope, part in PARTS.items() if scope in names), OTHER)


def _arrays(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(\w+)\[([\d,]*)\]", text)


def _numbers(text: str) -> Shape:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _lines(texts: Iterable[str]) -> Iterator[_Line]:
    for text in texts:
        match = re.match(r" +(?:ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\(([^)]*)\)", text)
        if match:
            operands = re.findall(r"%?([\w.-]+)(?:,|$)", match[4])
            yield _Line(match[1], match[2], match[3], operands, text)


def _products(lines: list[_Line], types: Mapping[str, str] | None = None) -> Iterator[Product]:
    """Yield the products among operations: XLA's own, and calls of NVIDIA's library.

    `types` are those of the operands, by default of `lines`.
    """
    types = types or {line.name: line.type for line in lines}
    for line in lines:
        if not (line.kind == "dot" or "$gemm" in line.text or "$matmul" in line.text):
            continue

        def axes(what: str, text: str = line.text) -> tuple[Shape, Shape]:
            # dot: lhs_contracting_dims={1}; NVIDIA's library: "lhs_contracting_dimensions":["1"]
            found = (
                re.search(rf'{side}_{what}_dim\w+"?[=:][\[{{]([\d,"]*)', text) for side in ("lhs", "rhs")
            )
            left, right = (_numbers(match[1]) if match else () for match in found)
            return left, right

        shapes = [_numbers(_arrays(types[name])[0][1]) for name in line.operands[:2] if name in types]
        if len(shapes) == 2:
            result = _numbers(_arrays(line.type)[0][1])
            yield Product(shapes[0], shapes[1], result, axes("contracting"), axes("batch"))
