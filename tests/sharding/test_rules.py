"""Sharding rules, meshes as text, and processes that meet."""

import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest

from tests.functions import init_state, make_train_step
from zerotollm.errors import RunError, UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.collectives import Collective, collectives
from zerotollm.sharding import local_launcher
from zerotollm.sharding.config import MeshShape, ProcessAddress, parse_distributed, parse_mesh
from zerotollm.sharding.processes import check_same, is_first, join, meet, on_first, together
from zerotollm.sharding.rules import (
    Placement,
    bytes_per_device,
    check_divides,
    make_mesh,
    path_name,
    sharding_rows,
    spec_of,
)
from zerotollm.training.config import OptimizerConfig, TrainConfig

MODEL = resolve(
    TransformerConfig(vocab_size=40, num_layers=1, width=16, num_heads=2, ff_width=24, num_kv_heads=2),
    vocab_size=40,
    context=8,
)
TRAIN, OPTIMIZER = TrainConfig(steps=4), OptimizerConfig(block=8)
INIT = partial(init_state, MODEL, OPTIMIZER, TRAIN)


@pytest.fixture(scope="module")
def state():
    return jax.eval_shape(INIT)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", MeshShape()),
        ("data=2 fsdp=4", MeshShape(2, 4, 1)),
        ("tensor=8,data=2", MeshShape(2, 1, 8)),
        (" fsdp=16 ", MeshShape(1, 16, 1)),
    ],
)
def test_a_mesh_is_read_from_text(text, shape):
    assert parse_mesh(text) == shape
    assert parse_mesh(str(shape)) == shape


@pytest.mark.parametrize(
    "text", ["data", "data=0", "data=-1", "data=2 data=2", "rows=2", "data=2x", "data=", "8"]
)
def test_an_invalid_mesh_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"train\.mesh is .*must be some of data=N") as error:
        parse_mesh(text)
    assert "\n" not in str(error.value)


def test_a_process_address_is_read_from_text():
    assert parse_distributed("auto") == ProcessAddress("")
    assert parse_distributed("coordinator=h:1 process=1 of=2") == ProcessAddress("h:1", 1, 2)


@pytest.mark.parametrize(
    "text", ["", "x", "coordinator=h:1", "coordinator=h process=0 of=1", "coordinator=h:1 process=2 of=2"]
)
def test_an_invalid_process_address_is_refused(text):
    with pytest.raises(UsageError, match="--distributed"):
        parse_distributed(text)


def test_every_matrix_and_its_optimizer_state_are_split(state):
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(path)
        spec = spec_of(name, len(leaf.shape))
        if len(leaf.shape) == 2:
            assert sorted(spec) == ["fsdp", "tensor"], name
        else:
            assert spec == (), name


def test_bytes_fall_with_the_mesh_and_the_table_adds_up(state):
    whole = bytes_per_device(state, MeshShape())
    assert whole == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert bytes_per_device(state, MeshShape(data=4)) == whole
    shape = MeshShape(2, 2, 2)
    matrices = sum(leaf.size * 4 for leaf in jax.tree.leaves(state) if leaf.ndim == 2)
    assert bytes_per_device(state, shape) == whole - matrices + matrices // 4
    rows = sharding_rows(state.params, shape)
    assert sum(row[3] for row in rows) == bytes_per_device(state.params, shape)
    assert ("layer_*/attention/output", "16 x 16", "tensor x fsdp", 256) in rows


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (MeshShape(tensor=4), "tensor=4 of train.mesh does not divide model.num_heads 2"),
        (MeshShape(fsdp=3), "fsdp=3 of train.mesh does not divide model.width 16"),
    ],
)
def test_an_axis_that_does_not_divide_is_named(state, shape, words):
    with pytest.raises(UsageError, match=words):
        check_divides(state.params, shape, heads=(2, 2))


def test_a_mesh_of_a_wrong_number_of_devices_is_refused():
    with pytest.raises(UsageError, match="is made of 1000 devices"):
        make_mesh(MeshShape(data=1000))


def test_batches_are_padded_with_rows_of_weight_0():
    placement = Placement(make_mesh(MeshShape(), jax.devices()[:1]), micro_batches=4)
    placed = placement.place_part(
        {"inputs": np.ones((6, 3), np.int32), "weights": np.ones((6, 3), np.float32)}
    )
    assert placed["inputs"].shape == (8, 3)
    assert placed["weights"].sum() == 18
    about = {"inputs": ((6, 3), np.int32)}
    assert placement.shapes(about)["inputs"].shape == (8, 3)


def test_on_one_device_the_program_is_the_one_without_a_mesh():
    batch = {
        "inputs": np.arange(32, dtype=np.int32).reshape(4, 8),
        "targets": np.arange(32, dtype=np.int32).reshape(4, 8) % 7,
        "weights": np.ones((4, 8), np.float32),
        "segments": np.ones((4, 8), np.int32),
    }
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    plain = make_train_step(MODEL, OPTIMIZER, TRAIN).lower(jax.eval_shape(INIT), batch).as_text()
    with jax.set_mesh(mesh):
        meshed = make_train_step(MODEL, OPTIMIZER, TRAIN).lower(jax.eval_shape(INIT), batch).as_text()
    assert "sharding" not in plain

    def operations(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if "=" in line and "stablehlo" in line]

    assert operations(meshed) == operations(plain)


def test_collectives_are_read_with_their_groups_and_loops():
    hlo = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = bf16[16,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %r = (f32[10]{0}, f32[6]{0}) all-reduce(%b, %c), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
  %m = f32[8]{0} all-gather(%e), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %n = f32[8]{0} all-gather(%e), replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}, dimensions={0}
  %p = s32[4,2]{1,0} collective-permute(%q), channel_id=11, source_target_pairs={{0,0},{1,2},{2,1},{3,3}}
  %s = f32[5]{0} reduce-scatter(%d), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
"""
    assert collectives(hlo, node=2) == {
        Collective("all-gather", 2, 1, 64): 3,  # half of 128 bytes comes from the other device
        Collective("all-gather", 4, 2, 24): 2,  # devices 0 to 3 and 4 to 7; 0, 1, 4, 5 and 2, 3, 6, 7
        Collective("all-reduce", 2, 2, 64): 1,  # groups (0, 2) and (1, 3)
        Collective("collective-permute", 2, 2, 32): 1,  # devices 1 and 2 are on different nodes
        Collective("reduce-scatter", 4, 2, 60): 1,
    }


def test_a_single_process_is_the_first():
    assert is_first()
    assert not together()
    assert on_first(lambda: object) is object
    check_same(configuration=object)  # which JSON could not hold


def test_a_missing_coordinator_is_reported_in_one_line():
    with pytest.raises(RunError, match=r"no coordinator answers at 127\.0\.0\.1:1 within 0 s"):
        join("127.0.0.1:1", process=1, num_processes=2, timeout=0)


@pytest.mark.parametrize(("present", "missing"), [((0, 1, 2), None), ((0, 2), "1")])
def test_all_processes_report_the_missing_ones(present, missing):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{one.getsockname()[1]}"

    def attempt(process: int) -> str | None:
        try:
            meet(coordinator, process, num_processes=3, timeout=0.6 if missing else 20)
        except RunError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(3) as threads:
        lines = set(threads.map(attempt, present))
    assert len(lines) == 1
    (line,) = lines
    assert line is None if missing is None else line.startswith(f"process {missing} of 3 did not come")


@pytest.mark.parametrize(
    "words", [[], ["--processes", "2"], ["--processes", "0", "--", "true"], ["2", "--", "a", "b"]]
)
def test_the_local_launcher_shows_its_usage(words, capsys):
    assert local_launcher.main(words) == 2
    assert capsys.readouterr().err.startswith("error:")
