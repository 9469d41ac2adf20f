"""The device table, and the reason why jax does not find the GPU."""

import re

import pytest

from zerotollm.errors import UsageError
from zerotollm.host.gpu import SETTINGS, prepare_gpu
from zerotollm.model.compute_config import Accelerator
from zerotollm.planning.device_benchmark import host_memory_bytes, measure_this
from zerotollm.planning.device_table import TABLE, find, gpu_trouble


@pytest.mark.parametrize("device", TABLE.values(), ids=lambda device: device.name)
def test_every_device_says_where_its_numbers_are_from(device):
    assert device.source
    assert device.memory_bytes > 1e9
    assert device.flops.keys() == {"float32", "bfloat16", "float16"}
    assert device.flops[device.accelerator.half()] == max(device.flops.values())


def test_the_reference_card():
    card = find("rtx2080")
    assert (card.memory_bytes, card.bandwidth) == (8 * 2**30, 448e9)
    assert card.flops["float16"] == 40.3e12
    assert card.flops["bfloat16"] == card.flops["float32"], "Turing computes bfloat16 at float32's speed"
    assert card.accelerator == Accelerator("gpu", 7.5, "GeForce RTX 2080")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 2080", "rtx2080"),
        ("2080", "rtx2080"),
        ("rtx-2080", "rtx2080"),
        ("2080 Ti", "rtx2080ti"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100", "a100"),
        ("A100 SXM 80 GB", "a100"),
        ("Apple M2", "apple-m2"),
        ("m2", "apple-m2"),
        ("CPU", "cpu"),
    ],
)
def test_a_device_is_found_as_people_write_it(written, name):
    assert find(written).name == name


@pytest.mark.parametrize(("name", "near"), [("RTX 2070 Ti", "rtx2080ti"), ("h10", "h100")])
def test_an_unknown_device_is_one_line_with_the_nearest(name, near):
    with pytest.raises(UsageError, match=f"did you mean {near}") as caught:
        find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "capability", "cuda", "platform", "says"),
    [
        (None, None, None, "cpu", None),
        (550, 7.5, 12, "gpu", None),
        (550, 7.5, None, "cpu", "requirements-cuda.txt"),
        (470, 7.5, 12, "cpu", "driver 470 is too old .* 525"),
        (550, 8.6, 13, "cpu", "need 580.*or install the CUDA 12"),
        (580, 7.0, 13, "cpu", "no code for compute capability 7.0"),
        (580, 8.6, 12, "cpu", "jax.devices"),
    ],
)
def test_trouble_with_a_gpu_names_what_to_do(driver, capability, cuda, platform, says):
    said = gpu_trouble(driver, capability, cuda, platform)
    if says is None:
        assert said is None
    else:
        assert re.search(says, said)
        assert "\n" not in said


def test_this_device_is_measured():
    here = measure_this("float32", seconds=0.01)
    assert here.flops["float32"] > 1e8
    assert 1e8 < here.bandwidth < 1e13
    assert here.memory_bytes == host_memory_bytes() or here.accelerator.platform != "cpu"


def test_a_gpu_is_prepared_and_the_environment_comes_first(tmp_path):
    driver = tmp_path / "version"
    assert prepare_gpu({}, driver) == {}
    driver.write_text("NVRM version: 550.54")
    environment = {}
    assert prepare_gpu(environment, driver) == SETTINGS == environment
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        own = {name: "0.5"}
        assert prepare_gpu(own, driver) == {}
        assert own == {name: "0.5"}
