"""Files that a path, a folder and a glob name: each once, and a log line about the others."""

import json
import os

import pytest

from zerotollm import run_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.find import find_files
from zerotollm.data.sources.examples import open_examples
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment


@pytest.fixture
def folder(tmp_path):
    """A folder with two texts, `a.txt` and `deep/b.txt`."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("text a")
    (tmp_path / "in" / "deep" / "b.txt").write_text("text b")
    return tmp_path / "in"


def logged(caplog) -> str:
    lines = [record.getMessage() for record in caplog.records if record.name == "zerotollm.data.find"]
    caplog.clear()
    assert len(lines) <= 1
    return "".join(lines)


def by_folder_and_glob(folder) -> list[list[str]]:
    """Real paths that both read, the same."""
    found = [find_files(str(folder)), find_files(f"{folder}/**/*.txt"), find_files(f"{folder}/**")]
    paths = [[os.path.realpath(path) for path in files.values()] for files in found]
    assert sorted(paths[0]) == sorted(paths[1]) == sorted(paths[2])
    assert len(set(paths[0])) == len(paths[0])
    return sorted(os.path.relpath(path, os.path.realpath(folder)) for path in paths[0])


def test_plain_files_are_found_without_a_log_line(folder, caplog):
    assert by_folder_and_glob(folder) == ["a.txt", "deep/b.txt"]
    assert list(find_files(str(folder))) == ["a.txt", "deep/b.txt"]
    assert list(find_files(f"{folder}/deep/*.txt")) == [f"{folder}/deep/b.txt"]
    assert not logged(caplog)


def test_a_linked_folder_is_read(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.txt").write_text("text c")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert by_folder_and_glob(folder) == ["../elsewhere/c.txt", "a.txt", "deep/b.txt"]
    assert "link/c.txt" in find_files(str(folder))


def test_a_linked_file_is_read_once_under_its_own_name(folder, caplog):
    (folder / "0.txt").symlink_to("deep/b.txt")
    (folder / "0deep").symlink_to("deep")
    assert by_folder_and_glob(folder) == ["a.txt", "deep/b.txt"]
    caplog.clear()
    assert list(find_files(f"{folder}/")) == ["a.txt", "deep/b.txt"]
    assert "2 further links to a file" in logged(caplog)
    assert list(find_files(f"{folder}/0*.txt")) == [f"{folder}/0.txt"], "the only name that matches"


def test_links_that_lead_back_end(folder):
    for name in ("x", "y", "deep/z"):
        (folder / name).symlink_to(folder)
    (folder / "self").symlink_to("self")
    assert by_folder_and_glob(folder) == ["a.txt", "deep/b.txt"]


def test_files_left_out_are_logged_in_one_line(folder, caplog):
    for name in ("c.png", "d.png", "e.csv", "f.jsonl.br", "noname", ".hidden.txt"):
        (folder / name).write_text("x")
    (folder / "g.txt").symlink_to("nowhere.txt")
    assert list(find_files(str(folder))) == ["a.txt", "deep/b.txt"]
    line = logged(caplog)
    assert line.startswith(f"left out of {folder}: ")
    for part in ("2 .png", "1 .csv", "1 .br", "1 hidden", "1 broken links", "1 without a suffix"):
        assert part in line
    assert len(find_files(f"{folder}/*")) == 1
    assert "2 .png" in logged(caplog)
    with pytest.raises(UsageError, match=r"2 paths but no text.*left out: 2 \.png"):
        find_files(f"{folder}/*.png")


def test_runs_and_models_are_left_out(folder, caplog):
    with run_directory.locked(folder / "runs" / "base"):
        run_directory.claim(folder / "runs" / "base", Experiment())
    (folder / "runs" / "base" / "metrics.jsonl").write_text('{"step": 1}\n')
    with run_directory.locked(folder / "runs" / "suite"):
        (folder / "runs" / "suite" / "table.md").write_text("| a |")
    copied = folder / "copied"
    copied.mkdir()
    (copied / "config.json").write_text((folder / "runs" / "base" / "config.json").read_text())
    (copied / "metrics.jsonl").write_text('{"step": 1}\n')
    exported = folder / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (exported / "README.md").write_text("a card")
    mine = folder / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("[1]")
    (mine / "c.txt").write_text("text c")
    assert list(find_files(str(folder))) == ["a.txt", "deep/b.txt", "mine/c.txt"]
    line = logged(caplog)
    assert "copied (a run or a model)" in line
    assert "1 more such folders" in line
    assert by_folder_and_glob(folder) == ["a.txt", "deep/b.txt", "mine/c.txt"]
    assert list(find_files(str(copied))) == ["metrics.jsonl"], "a folder that is named is meant"


@pytest.mark.parametrize("name", ["data [v2]", "[a]b", "what?", "st*r"])
def test_a_name_with_brackets_is_read_as_it_is_written(tmp_path, name, monkeypatch):
    (tmp_path / name / "deep").mkdir(parents=True)
    for path in ("a.txt", "[1].txt", "deep/b.txt"):
        (tmp_path / name / path).write_text("text")
    (tmp_path / "data 2").mkdir()
    (tmp_path / "data 2" / "other.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    for start in (str(tmp_path / name), name, f"./{name}"):
        assert list(find_files(start)) == ["[1].txt", "a.txt", "deep/b.txt"]
        assert list(find_files(f"{start}/[1].txt")) == ["[1].txt"]
        assert [path.name for path in find_files(f"{start}/*.txt").values()] == ["[1].txt", "a.txt"]
        assert len(find_files(f"{start}/**/*.txt")) == 3
        assert [path.name for path in find_files(f"{start}/[[]1].*").values()] == ["[1].txt"]
    with pytest.raises(UsageError, match=r"no text.*a \[ of a name is written \[\[\]"):
        find_files(f"{name}/[1].*")


def test_examples_are_read_from_the_jsonl_of_a_folder(folder, caplog):
    lines = "".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) + "\n" for i in range(40))
    (folder / "my.jsonl").write_text(lines)
    made = open_examples(DataConfig(corpus=str(folder)), "completion")
    assert sum(map(len, made.splits.values())) == 40
    assert logged(caplog) == f"left out of {folder}: 2 .txt"


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.txt")
    (folder / "device.txt").symlink_to("/dev/null")
    for name in ("pipe.txt", "device.txt"):
        with pytest.raises(UsageError, match=f"{name} is a pipe or a device"):
            find_files(str(folder / name))


@pytest.mark.parametrize(
    ("number", "rest"), [(3, ""), (4, "1 more such folders"), (6, "3 more such folders")]
)
def test_three_folders_are_named_and_the_others_counted(folder, caplog, number, rest):
    for i in range(number):
        (folder / f"model{i}").mkdir()
        (folder / f"model{i}" / "config.json").write_text('{"model_type": "gpt2"}')
    assert list(find_files(str(folder))) == ["a.txt", "deep/b.txt"]
    named = [f"model{i} (a run or a model)" for i in range(3)]
    assert logged(caplog) == f"left out of {folder}: {', '.join(named + [rest] * bool(rest))}"


def test_both_suffixes_of_a_compressed_file_are_logged(folder, caplog):
    for name in ("a.tar.gz", "b.TXT.GZ", "c.v2.csv"):
        (folder / name).write_bytes(b"")
    assert list(find_files(str(folder))) == ["a.txt", "b.TXT.GZ", "deep/b.txt"]
    assert logged(caplog) == f"left out of {folder}: 1 .csv, 1 .tar.gz"


def test_a_folder_without_permission_is_logged(folder, caplog, monkeypatch):
    listed = os.listdir

    def listdir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert list(find_files(str(folder))) == ["a.txt"]
    assert logged(caplog) == f"left out of {folder}: deep (Permission denied)"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/b.txt", ["deep/b.txt", "deep/er/b.txt"]),
        ("**/deep/*.txt", ["deep/b.txt"]),
        ("**/er/**", ["deep/er/b.txt", "deep/er/c.md"]),
        ("**/*.md", ["deep/er/c.md"]),
        ("d*/**/*.txt", ["deep/b.txt", "deep/er/b.txt"]),
        ("*/*.txt", ["deep/b.txt"]),
    ],
)
def test_two_stars_match_any_folders_and_one_star_one_name(folder, pattern, names):
    (folder / "deep" / "er").mkdir()
    (folder / "deep" / "er" / "b.txt").write_text("text")
    (folder / "deep" / "er" / "c.md").write_text("text")
    assert list(find_files(f"{folder}/{pattern}")) == [f"{folder}/{name}" for name in names]


def test_two_stars_match_folders_of_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list(find_files("**/b.txt")) == ["deep/b.txt"]
