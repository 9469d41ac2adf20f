"""metrics.jsonl holds whole lines in order and goes back to a step exactly; TensorBoard reads the same."""

import pytest

from zerotollm.training import tensorboard
from zerotollm.training.metrics import MetricsWriter, read_metrics


def write(tmp_path, step, lines):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step)
    for line in lines:
        writer.write(dict(line))
    writer.sync()
    writer.close()


def without_timing(path):
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(path)]


def test_going_back_takes_out_later_lines_and_a_torn_one(tmp_path):
    lines = [{"step": s, "loss": 1 / s, "tokens": s * 10} for s in (1, 2, 3, 4)]
    write(tmp_path, 0, lines)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert without_timing(path) == lines
    write(tmp_path, 2, lines[2:])
    assert without_timing(path) == lines
    assert path.read_text().endswith("\n")


def test_a_number_that_is_not_finite_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, 0, [{"step": 1, "loss": float("nan")}])


def test_tensorboard_reads_the_same_numbers(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    write(tmp_path, 0, [{"step": 300, "loss": 2.5, "tokens": 7}, {"step": 300, "validation_bpb": 1.25}])
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    points = [(e.step, v.tag, v.simple_value) for e in events[1:] for v in e.summary.value]
    assert points == [(300, "train/loss", 2.5), (300, "validation/bpb", 1.25)]
    assert events[1].wall_time == read_metrics(tmp_path / "metrics.jsonl")[0]["timing"]["time"]


def test_crc32c_is_the_one_of_rfc_3720():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"step": ' + "9" * 5000 + "}",
        '{"step": true}',
        '{"step": 2, "validation_bpb": "1.5"}',
        '{"step": 2, "loss": NaN}',
        '{"step": 2, "loss": null}',
        '{"step": 2, "timing": 3}',
    ],
    ids=range(7),
)
def test_a_damaged_line_ends_the_reading_and_training_goes_on(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "validation_bpb": 1.5}}\n{line}\n')
    assert read_metrics(path) == [{"step": 1, "validation_bpb": 1.5}]
    writer = MetricsWriter(path, tmp_path / "tensorboard", step=5)
    assert writer.best_bpb == 1.5
    writer.close()
