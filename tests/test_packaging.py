"""What `pip install .` installs: its files, its requirements, and a wheel that trains in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from zerotollm.cli import main

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TINY = [
    *("--data.corpus", "text.txt", "--data.context", "16", "--data.batch-size", "4"),
    *(
        "--tokenizer.vocab-size",
        "270",
        "--model.width",
        "8",
        "--model.num-heads",
        "2",
        "--model.num-layers",
        "1",
    ),
    *("--train.steps", "10", "--train.eval-every", "5", "--train.checkpoint-every", "5"),
]
TEXT = "\n\n".join(f"the {n} king sees a stone in the morning. a bird hears the rain." for n in range(200))
OWN = """from dataclasses import replace

from experiments.base import experiment as base


def experiment():
    return replace(base(), name="mine")
"""


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_extras_are_the_requirements_files():
    """Files with a line `-r`, which setuptools refuses, only join others; every other file is an extra or the base."""
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    extras = [name for extra in dynamic["optional-dependencies"].values() for name in extra["file"]]
    listed = {*dynamic["dependencies"]["file"], *extras}
    files = {path.name for path in ROOT.glob("requirements*.txt")}
    joined = {name: requirements(name) for name in files - listed}
    assert all(line.removeprefix("-r ") in listed for lines in joined.values() for line in lines)
    assert joined["requirements-dev.txt"] == ["-r requirements.txt", "-r requirements-test.txt"]
    assert not [name for name in listed if any(line.startswith("-") for line in requirements(name))]


def test_no_cuda_build_comes_with_the_tests():
    installed = [
        line for name in ("requirements.txt", "requirements-test.txt") for line in requirements(name)
    ]
    assert not [line for line in installed if line.startswith(("torch", "transformers", "lm_eval", "peft"))]


def test_every_file_of_the_package_is_installed():
    package = ROOT / "zerotollm"
    data = PROJECT["tool"]["setuptools"]["package-data"]["zerotollm"]
    installed = {path for pattern in ["**/*.py", *data] for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files - installed == set()
    folders = {path.parent for path in files}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.slow
def test_a_wheel_trains_and_writes_in_an_empty_folder(tmp_path):
    """Installed without its requirements, which come from this Python's packages by a .pth file."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "-q", "--no-deps", "-w", tmp_path / "wheels", "."]
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "results", "runs", "tests")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)  # building leaves a folder behind
    built = subprocess.run(wheel, cwd=source, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("no package index to build with")
    assert built.returncode == 0, built.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    scheme = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site, scripts = (Path(sysconfig.get_path(name, "venv", scheme)) for name in ("purelib", "scripts"))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    (file,) = (tmp_path / "wheels").iterdir()
    python = scripts / Path(sys.executable).name
    install = [*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", file]
    subprocess.run(install, check=True, capture_output=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "text.txt").write_text(TEXT, encoding="utf-8")
    environment = os.environ | {"ZEROTOLLM_DATA": str(tmp_path / "data"), "PYTHONPATH": ""}

    def zerotollm(*words: str) -> str:
        command = [scripts / "zerotollm", *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import zerotollm, experiments.base as e; print(zerotollm.__file__, e.__file__, zerotollm.load)"
    shown = subprocess.run([python, "-c", where], cwd=empty, env=environment, capture_output=True, text=True)
    assert shown.stdout.count(str(site)) == 2, shown.stderr
    assert zerotollm("--help").startswith("usage: zerotollm EXPERIMENT")
    assert "zerotollm --run-dir runs/base generate" in zerotollm("base", *TINY)
    assert zerotollm("base", "generate", "the king", "--max-tokens", "5").startswith("the king")
    zerotollm("base", "report")  # with the page's template, style and script
    assert '"git_commit": null' in (empty / "runs/base/environment.json").read_text()
    (empty / "experiments").mkdir()
    (empty / "experiments" / "mine.py").write_text(OWN)
    assert "mine" in zerotollm("--list")
    zerotollm("mine", *TINY)
    assert (empty / "runs/mine/summary.json").exists()


@pytest.mark.parametrize("action", ["train", "plan"])
def test_a_python_without_the_packages_is_told_so_in_one_line(action, tmp_path):
    # -S: without the environment's packages.
    command = [sys.executable, "-S", "launch.py", "base", action, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"error: \w+ is not installed for this Python: .* -m pip install -r requirements.txt, or ", line
    )


def test_an_experiment_that_imports_what_is_not_there(tmp_path, capsys):
    folder = tmp_path / "missing_imports"
    folder.mkdir()
    (folder / "other.py").write_text("import no_such_package.part\n", "utf-8")
    (folder / "ours.py").write_text("import zerotollm.nothing\n", "utf-8")
    options = ["--experiments", str(folder), "--run-dir", str(tmp_path / "run"), "--experiment"]
    assert main([*options, "other"], ROOT / "experiments") == 1
    assert capsys.readouterr().err.startswith("error: no_such_package is not installed for this Python: ")
    with pytest.raises(ModuleNotFoundError, match=r"zerotollm\.nothing"):  # a fault of the code
        main([*options, "ours"], ROOT / "experiments")
