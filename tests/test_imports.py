"""Imports point one way, without circles, stand at the top, and keep the command line light."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("zerotollm", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
} | {"launch": ROOT / "launch.py"}

# Lowest first. A module imports from lines above its own and from its own package, never from one on the same line.
LAYERS = [
    line.split()
    for line in """
    zerotollm errors randomness types
    suggest host shell output own_code significance
    fields console sharding
    data model
    decoding training
    experiment
    validation run_directory
    components interop serving
    explain
    evaluation planning programs
    run
    session lm_eval_adapter
    explainable_run studies
    experiments actions
    catalog
    usage
    cli
    __main__
    launch
    """.strip().splitlines()
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# What the command line imports before it knows the action. Each imports only the standard library and light modules.
LIGHT = {
    "zerotollm",
    "zerotollm.errors",
    "zerotollm.types",
    "zerotollm.suggest",
    "zerotollm.fields",
    "zerotollm.shell",
    "zerotollm.output",
    "zerotollm.own_code",
    "zerotollm.experiment",
    "zerotollm.validation",
    "zerotollm.run_directory",
    "zerotollm.host.cores",
    "zerotollm.host.atomic_files",
    "zerotollm.host.file_lock",
    "zerotollm.host.gpu",
    "zerotollm.host.memory_limit",
    "zerotollm.host.stop_signals",
    "zerotollm.studies.suite",
    "zerotollm.actions",
    "zerotollm.catalog",
    "zerotollm.usage",
    "zerotollm.cli",
    "zerotollm.__main__",
} | {name for name in MODULES if name.startswith("zerotollm.") and name.endswith("config")}
HEAVY = {
    "jax",
    "flax",
    "optax",
    "orbax",
    "numpy",
    "tensorflow_datasets",
    "sentencepiece",
    "tensorboardX",
    "scipy",
    "matplotlib",
    "plotly",
    "safetensors",
    "tokenizers",
    "jinja2",
    "starlette",
    "uvicorn",
    "pyarrow",
    "zstandard",
    "datasets",
}


# Packages that functions may import, with the reason. All other imports stand at the top of the file.
DEFERRED = {
    "transformers": "optional",
    "torch": "optional",
    "lm_eval": "optional",
    "gguf": "optional",
    "sklearn": "optional",
    "fcntl": "POSIX only",
    "msvcrt": "Windows only",
    "psutil": "Windows only",
    "readline": "POSIX only",
    "resource": "POSIX only",
    "tyro": "takes half a second, and only --help all needs it",
}
# Modules that functions of single files import, with the reason. Times are of two cores of a server.
DEFERRED_IN = {
    ("zerotollm.run_directory", "jax"): "the command line imports this file",
    (
        "zerotollm.explain.figures.picture",
        "zerotollm.explain.figures.image",
    ): "matplotlib, 0.5 s, draws .png files only",
    (
        "zerotollm.data.sources.tfds",
        "zerotollm.data.sources.tfds_library",
    ): "0.5 s, which cached tokens do not need",
    (
        "zerotollm.data.sources.records",
        "zerotollm.data.sources.parquet",
    ): "pyarrow, 0.3 s, which other files do not need",
    (
        "zerotollm.data.tokens.sentencepiece",
        "zerotollm.data.tokens.word_cache",
    ): "pyarrow, 0.3 s, which small texts do not need",
    (
        "zerotollm.data.sources.hub",
        "zerotollm.data.sources.hub_library",
    ): "optional, and 1 s, which cached tokens do not need",
}
# Modules that import by name, with the reason.
IMPORT_BY_NAME = {
    "zerotollm": "load() and the classes of a run, at their first use",
    "zerotollm.cli": "the action, and the other processes' meeting, once the command line is understood",
    "zerotollm.catalog": "the experiment's file",
    "zerotollm.own_code": "the experiment's file",
    "zerotollm.data.sources.bible": "one optional package for each version",
    "zerotollm.data.sources.tfds_library": "one package for each data set",
}


def layer(module: str) -> str:
    """Return the name of a module in LAYERS: its package below zerotollm, or itself."""
    names = module.split(".")
    return names[1] if names[0] == "zerotollm" and len(names) > 1 else names[0]


def imported(node: ast.AST) -> set[str]:
    """Return the full names of the modules that an import statement names; nothing for other nodes."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.module, f"line {node.lineno}: write imports in full"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in MODULES else node.module for name in names}
    return set()


@cache
def tree_of(module: str) -> ast.Module:
    """Parse a module: when a test asks, because every process of the suite collects this file."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def all_imports(module: str) -> frozenset[str]:
    return frozenset().union(*map(imported, ast.walk(tree_of(module))))


def test_imports_point_one_way():
    assert {layer(module) for module in MODULES} <= RANK.keys(), "add to LAYERS"
    wrong = [
        f"{module} imports {other}, which lies above or beside it"
        for module in MODULES
        for other in all_imports(module) & MODULES.keys()
        if layer(other) != layer(module) and RANK[layer(other)] >= RANK[layer(module)]
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle():
    graph = {module: all_imports(module) & MODULES.keys() - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def below_the_top(module: str) -> list[str]:
    tree, wrong = tree_of(module), []
    for node in set(ast.walk(tree)) - set(tree.body):
        for name in imported(node):
            package = name.partition(".")[0]
            if package not in DEFERRED and not {(module, package), (module, name)} & DEFERRED_IN.keys():
                wrong.append(f"{module}:{node.lineno} imports {name} below the top of the file")
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in ("import_module", "__import__", "TYPE_CHECKING") and module not in IMPORT_BY_NAME:
                wrong.append(f"{module}:{node.lineno} imports by name")
    return wrong


def test_imports_stand_at_the_top():
    wrong = [line for module in MODULES for line in below_the_top(module)]
    assert not wrong


def test_no_file_needs_a_posix_module():
    posix = {name for name, reason in DEFERRED.items() if reason == "POSIX only"}
    wrong = [module for module in MODULES if posix & set().union(*map(imported, tree_of(module).body))]
    assert not wrong, "they cannot be imported on Windows"


def test_exceptions_are_in_use():
    """No reason stays in a table after the import that it explains has gone."""
    used = {
        (module, part)
        for module in MODULES
        for name in all_imports(module)
        for part in (name, name.partition(".")[0])
    }
    assert DEFERRED.keys() <= {package for _, package in used}
    assert DEFERRED_IN.keys() <= used
    assert all("import_module" in MODULES[module].read_text(encoding="utf-8") for module in IMPORT_BY_NAME)


@pytest.mark.parametrize("action", ["chat", "generate", "serve"])
def test_actions_that_only_write_text_import_no_explanations(action):
    seen, new = set(), {f"zerotollm.actions.{action}"}
    while new:
        seen |= new
        new = set().union(*(all_imports(module) for module in new)) & MODULES.keys() - seen
    assert not {module for module in seen if layer(module) == "explain"}


FOLDERS = {name: path for name, path in MODULES.items() if path.name == "__init__.py"}


def test_a_folder_says_what_it_holds_and_who_may_import_it():
    heads = {name: (ast.get_docstring(tree_of(name)) or "").splitlines()[:4] for name in FOLDERS}
    silent = [name for name, lines in heads.items() if "import" not in "\n".join(lines)]
    assert not silent, "they need a docstring: their content, and who may import them"


def test_light_modules_import_only_light_modules():
    heavy = [
        f"{module} imports {other}: the command line would wait for it"
        for module in sorted(LIGHT)
        for other in set().union(*map(imported, tree_of(module).body))
        if not (other in LIGHT if other in MODULES else other.partition(".")[0] in sys.stdlib_module_names)
    ]
    assert not heavy


def test_there_is_one_console():
    others = {"rich.console.Console", "rich.print", "rich.get_console"}
    wrong = [
        f"{module}:{node.lineno} takes another console than zerotollm.console.Console, which interprets no text"
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ImportFrom)
        and others & {f"{node.module}.{alias.name}" for alias in node.names}
    ]
    assert not wrong


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--list"],
        ["--experiment", "base", "--help"],
        ["--experiment", "base", "generate", "--help"],
        ["--experiment", "bse"],
        ["--experiment", "ablations", "ablate", "--help"],
        ["--experiment", "ablations", "--only", "nothing"],
        ["--experiment", "base", "--train.steps", "-1"],
        ["--experiment", "base", "generate", "--run-dir", "nowhere"],
        ["--experiment", "base", "explain", "a text", "--run-dir", "nowhere"],
        ["--experiment", "base", "explain", "--help"],
        ["--experiment", "base", "report", "--help"],
    ],
    ids=" ".join,
)
def test_the_command_line_answers_without_heavy_imports(words):
    script = (
        "import sys; from pathlib import Path; from zerotollm.cli import main; "
        f"main({words!r}, Path('experiments')); print('LOADED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in out.stdout.rpartition("LOADED")[2].split()}
    assert "zerotollm" in loaded
    assert not loaded & HEAVY
