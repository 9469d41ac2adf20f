"""Plant bugs in the package, run the nearest test file on each, and list the bugs that it does not catch.

    python -m tests.mutants                                     the sample of docs/explanation/mutants.md: 4 bugs a file
    python -m tests.mutants --only decoding/sample --per-file 20
    python -m tests.mutants --into docs/explanation/mutants.md              write the table there

A bug is one changed operator, comparison, number, truth value, argument or statement (DeMillo, Lipton and Sayward 1978,
"Hints on Test Data Selection"). The sample depends on the source and on --seed alone. A bug counts as caught where a
test fails or does not end. `EQUIVALENT` names the planted changes that are no bugs, each with its reason.
"""

import argparse
import ast
import copy
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- mutants -->", "<!-- end of mutants -->")
TIMEOUT_FACTOR = 4

NEAREST = {
    "model/layers": "model/test_layers.py",
    "model/transformer": "model/test_transformer.py",
    "model/encoder_decoder": "model/test_encoder_decoder.py",
    "training/step": "training/test_step.py",
    "training/optimizers": "training/test_optimizers.py",
    "training/objectives": "training/test_objectives.py",
    "training/moments": "training/test_moments.py",
    "training/lora": "training/test_lora.py",
    "training/metrics": "training/test_metrics.py",
    "training/checkpoints": "training/test_checkpoints.py",
    "training/cross_entropy": "training/test_cross_entropy.py",
    "model/chunked_attention": "model/test_chunked_attention.py",
    "training/loss_scale": "training/test_loss_scale.py",
    "decoding/sample": "decoding/test_sample.py",
    "decoding/filters": "decoding/test_sample.py",
    "sharding/cores": "sharding/test_cores.py",
    "decoding/beam": "decoding/test_beam.py",
    "decoding/text": "decoding/test_text.py",
    "decoding/continuous": "serving/test_scheduler.py",
    "decoding/translate": "decoding/test_translate.py",
    "evaluation/loss": "evaluation/test_loss.py",
    "evaluation/likelihood": "evaluation/test_likelihood.py",
    "evaluation/classification": "evaluation/test_classification.py",
    "evaluation/bleu": "evaluation/test_bleu.py",
    "evaluation/causality": "evaluation/test_causality.py",
    "significance": "test_significance.py",
    "data/batches/windows": "data/batches/test_windows.py",
    "data/batches/denoising": "data/batches/test_denoising.py",
    "data/batches/buckets": "data/batches/test_buckets.py",
    "data/tokens/examples": "data/sources/test_examples.py",
    "data/tokens/shards": "data/tokens/test_shards.py",
    "data/tokens/text": "data/tokens/test_text.py",
    "data/tokens/sentencepiece": "data/tokens/test_sentencepiece.py",
    "data/sources/lines": "data/sources/test_lines.py",
    "data/find": "data/test_find.py",
    "data/overlap": "data/test_overlap.py",
}
"""The test file that stands nearest to each file of the package whose bugs are planted."""

EQUIVALENT: dict[str, str] = {
    "data/tokens/shards: 1 -> 2": "`max(1, len(self.shards))`: one shard comes first from any start.",
    "data/batches/denoising: length - tokens -> length + tokens": "at least as many tokens stay as there are spans.",
    "data/tokens/sentencepiece: True -> False": "`deterministic=True` orders map fields, and there are none.",
    "evaluation/causality: np.where(np.arange(length) < length // 2, 1, 2) -> "
    "np.where(1, np.arange(length) < length // 2, 2)": "the two documents get other numbers, which are only compared.",
    "decoding/filters: count_B < k_B -> count_B <= k_B": "the rank below is then found, whose tokens all lose the tie.",
    "significance: distance < 0 -> distance <= 0": "a distance of 0 returns before.",
    "training/checkpoints: json.dumps(manifest, indent=1, allow_nan=False) -> "
    "json.dumps(manifest, allow_nan=False)": "the spaces of a file that is read as JSON.",
    "training/metrics: path.read_text(encoding='utf-8', errors='replace') -> path.read_text(errors='replace')": (
        "json.dumps writes ASCII alone."
    ),
}
"""Planted changes that change no result, by `Mutant.name`, each with its reason."""

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """A file with one planted bug."""

    file: str
    """below the package, without .py"""
    line: int
    before: str
    after: str
    source: str
    """the whole file, with the bug"""

    @property
    def name(self) -> str:
        """Return the bug's name: what it changes, so that the name stays when lines move."""
        return f"{self.file}: {self.before} -> {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may stand in place of `node`: each is one bug."""
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARISONS:
            other = copy.deepcopy(node)
            other.ops[0] = COMPARISONS[type(op)]()
            yield other
        case ast.BinOp(op=op) if type(op) in OPERATIONS:
            other = copy.deepcopy(node)
            other.op = OPERATIONS[type(op)]()
            yield other
        case ast.BoolOp(op=op):
            other = copy.deepcopy(node)
            other.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield other
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            yield operand
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call(func=ast.Name(id="min" | "max") | ast.Attribute(attr="minimum" | "maximum")):
            return  # the order of their arguments changes nothing
        case ast.Call(args=[left, right, *rest]) if not any(isinstance(a, ast.Starred) for a in node.args):
            yield ast.Call(node.func, [right, left, *rest], node.keywords)
        case ast.Call(keywords=[first, *rest]) if first.arg is not None:
            yield ast.Call(node.func, node.args, rest)
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield ast.Pass()


def mutants(file: str, root: Path = ROOT) -> list[Mutant]:
    """Return every bug that can be planted in a file: inside functions, never in a message, annotation or decorator."""
    source = (root / "zerotollm" / f"{file}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    out = []
    for path, node in inside_functions(tree):
        for other in changes(node):
            changed = copy.deepcopy(tree)
            place, parent = follow(changed, path)
            replacement = ast.copy_location(copy.deepcopy(other), node)
            field, index = place
            if index is None:
                setattr(parent, field, replacement)
            else:
                getattr(parent, field)[index] = replacement
            ast.fix_missing_locations(changed)
            before, after = (" ".join(ast.unparse(part).split())[:100] for part in (node, other))
            out.append(Mutant(file, node.lineno, before, after, ast.unparse(changed)))
    return out


Way = tuple[tuple[str, int | None], ...]


def inside_functions(tree: ast.AST) -> Iterator[tuple[Way, ast.AST]]:
    """Yield the way to each node in a function's body, and the node."""

    def walk(node: ast.AST, path: Way, inside: bool) -> Iterator[tuple[Way, ast.AST]]:
        if isinstance(
            node, ast.Raise | ast.JoinedStr | ast.Assert | ast.arguments | ast.Import | ast.ImportFrom
        ):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.FunctionDef):
            inside = True
        elif inside and isinstance(node, ast.expr | ast.stmt):
            yield path, node
        for field, value in ast.iter_fields(node):
            if field in ("decorator_list", "annotation", "returns"):
                continue
            if isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        yield from walk(child, (*path, (field, index)), inside)
            elif isinstance(value, ast.AST):
                yield from walk(value, (*path, (field, None)), inside)

    yield from walk(tree, (), False)


def follow(tree: ast.AST, path: Way) -> tuple[tuple[str, int | None], ast.AST]:
    """Return the last step of a way and the node that it starts from."""
    parent = tree
    for field, index in path[:-1]:
        value = getattr(parent, field)
        parent = value if index is None else value[index]
    return path[-1], parent


def sample(file: str, number: int, seed: int) -> list[Mutant]:
    """Return `number` bugs of a file, chosen by a hash of (seed, bug): an edit elsewhere in it moves none of them."""

    def draw(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.name} {mutant.line}".encode()).hexdigest()

    unique = {mutant.name: mutant for mutant in mutants(file) if mutant.before != mutant.after}
    return sorted(unique.values(), key=draw)[:number]


def run_tests(tree: Path, test: str, timeout: float) -> tuple[bool, float]:
    """Return whether a test file passes in a tree, and the seconds that it took."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    process = subprocess.Popen(
        command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = 1
    return code == 0, time.monotonic() - start


def table(results: list[tuple[Mutant, bool]]) -> str:
    """Return the results as Markdown: a row for each file, then every bug that survived."""
    counted = [(mutant, caught) for mutant, caught in results if mutant.name not in EQUIVALENT]
    caught = sum(caught for _, caught in counted)
    lines = [
        f"{len(counted)} bugs planted, {caught} caught by the nearest test file: {caught / max(len(counted), 1):.1%}. "
        f"{len(results) - len(counted)} more changes were planted that change no result.",
        "",
        "| file | nearest test file | planted | caught |",
        "| --- | --- | --- | --- |",
    ]
    for file in dict.fromkeys(mutant.file for mutant, _ in counted):
        rows = [caught for mutant, caught in counted if mutant.file == file]
        lines.append(f"| `{file}.py` | `tests/{NEAREST[file]}` | {len(rows)} | {sum(rows)} |")
    survivors = [mutant for mutant, caught in counted if not caught]
    if survivors:
        lines += ["", "Survived:", ""]
        lines += [f"- `{m.file}.py`: `{m.before}` → `{m.after}`" for m in survivors]
    equivalent = [mutant for mutant, _ in results if mutant.name in EQUIVALENT]
    if equivalent:
        lines += ["", "No bugs:", ""]
        lines += [f"- `{m.file}.py`: `{m.before}` → `{m.after}`: {EQUIVALENT[m.name]}" for m in equivalent]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="files of the package, separated by commas: decoding/sample"
    )
    parser.add_argument("--per-file", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, help="a Markdown page with the marks of this table")
    options = parser.parse_args()
    files = options.only.split(",") if options.only else list(NEAREST)
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        ignore = shutil.ignore_patterns(".git", "runs", "results", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=ignore)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder) / "compiled"))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for file in files:
            passed, seconds = run_tests(tree, NEAREST[file], 1800)
            if not passed:
                sys.exit(f"tests/{NEAREST[file]} fails without any planted bug")
            path = tree / "zerotollm" / f"{file}.py"
            source = path.read_text(encoding="utf-8")
            for mutant in sample(file, options.per_file, options.seed):
                path.write_text(mutant.source, encoding="utf-8")
                passed, took = run_tests(tree, NEAREST[file], 30 + TIMEOUT_FACTOR * seconds)
                results.append((mutant, not passed))
                word = "SURVIVED" if passed else "caught"
                print(
                    f"{word:8} {took:5.0f} s  {file}:{mutant.line}: {mutant.before} -> {mutant.after}",
                    flush=True,
                )
            path.write_text(source, encoding="utf-8")
    text = table(results)
    print(text)
    if options.into:
        page = options.into.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        options.into.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
