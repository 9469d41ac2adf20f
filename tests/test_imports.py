"""Imports point one way, and what the command line reads before it works is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("zerotollm", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
} | {"launch": ROOT / "launch.py"}

# Lowest first. A module imports from layers below its own and from its own package, never from one beside it.
LAYERS = [
    {"zerotollm.errors"},
    {
        "zerotollm.suggest",
        "zerotollm.randomness",
        "zerotollm.significance",
        "zerotollm.host",
        "zerotollm.shell",
    },
    {"zerotollm.output", "zerotollm.fields", "zerotollm.own_code"},
    {"zerotollm.console", "zerotollm.sharding"},
    {"zerotollm.data", "zerotollm.model"},
    {"zerotollm.training"},
    {"zerotollm.decoding"},
    {"zerotollm.experiment"},
    {"zerotollm.validation"},
    {"zerotollm.run_directory"},
    {"zerotollm.components"},
    {"zerotollm.explain", "zerotollm.interop", "zerotollm.planning", "zerotollm.serving"},
    {"zerotollm.evaluation"},
    {"zerotollm.run"},
    {"zerotollm.lm_eval_adapter"},
    {"zerotollm"},
    {"zerotollm.session"},
    {"zerotollm.studies"},
    {"zerotollm.actions", "experiments"},
    {"zerotollm.catalog"},
    {"zerotollm.usage"},
    {"zerotollm.cli"},
    {"launch"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
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
}


def part(module: str) -> str:
    """What a module counts as: its package below zerotollm, or itself."""
    if module in RANK:
        return module
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "zerotollm" else names[0]


def imported(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it, by its full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    own = part(module)
    assert own in RANK, f"say in LAYERS where {own} belongs"
    for other in imported(MODULES[module]):
        theirs = part(other)
        if theirs in RANK and theirs != own:
            assert RANK[theirs] < RANK[own], f"{module} imports {other}, which lies above or beside it"


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith("config")])
def test_config_modules_are_light(module):
    for other in imported(MODULES[module]):
        ours = other.startswith("zerotollm")
        light = (
            other in ("zerotollm.errors", "zerotollm.fields") or other.endswith("config")
            if ours
            else other in sys.stdlib_module_names
        )
        assert light, f"{module} imports {other}: the command line would wait for it"


@pytest.mark.parametrize("module", MODULES)
def test_there_is_one_console(module):
    others = {"rich.console.Console", "rich.print", "rich.get_console"} & imported(MODULES[module])
    assert not others, (
        f"{module} imports {others}: take zerotollm.console.Console, which shows texts as they are"
    )


def test_an_experiment_needs_only_configs():
    ours = {name for name in imported(MODULES["zerotollm.experiment"]) if name.startswith("zerotollm")}
    assert {name for name in ours if not name.endswith("config")} <= {
        "zerotollm.errors",
        "zerotollm.fields",
        "zerotollm.own_code",
        "zerotollm.suggest",
    }


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
