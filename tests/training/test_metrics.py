"""metrics.jsonl holds whole lines in order and goes back to a step exactly; TensorBoard reads the same."""

import math
import time

import pytest

from zerotollm.errors import RunError
from zerotollm.training import tensorboard
from zerotollm.training.metrics import MetricsWriter, NullMetricsWriter, StepLog, read_metrics


def write(tmp_path, step, lines):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step)
    for line in lines:
        writer.write(dict(line))
    writer.sync()
    writer.close()


def without_timing(path):
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(path)]


def test_opening_at_a_step_drops_later_and_truncated_lines(tmp_path):
    lines = [{"step": s, "loss": 1 / s, "tokens": s * 10} for s in (1, 2, 3, 4)]
    write(tmp_path, 0, lines)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert without_timing(path) == lines
    write(tmp_path, 2, lines[2:])
    assert without_timing(path) == lines
    assert path.read_text().endswith("\n")


def test_a_non_finite_number_is_never_written(tmp_path):
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


def test_crc32c_matches_rfc_3720():
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
def test_reading_stops_at_a_damaged_line_and_training_continues(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "validation_bpb": 1.5}}\n{line}\n')
    assert read_metrics(path) == [{"step": 1, "validation_bpb": 1.5}]
    writer = MetricsWriter(path, tmp_path / "tensorboard", step=5)
    assert writer.best_bpb == 1.5
    writer.close()


@pytest.mark.parametrize("line", ["[1, 2]", '{"loss": 1.0}', '{"step": "7"}', '{"step": 7'], ids=str)
def test_reading_stops_at_a_line_without_a_step(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text(f'{{"step": 1}}\n{{"step": 2}}\n{line}\n{{"step": 3}}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_lines_and_best_are_read_from_the_copy_in_the_checkpoint(tmp_path):
    scores = {1: 3.0, 2: 2.0, 3: 2.5, 4: 1.0}
    write(tmp_path, 0, [{"step": s, "validation_bpb": bpb} for s, bpb in scores.items()] + [{"step": 5}])
    path, saved = tmp_path / "metrics.jsonl", tmp_path / "saved.jsonl"
    lines = without_timing(path)
    saved.write_bytes(path.read_bytes())
    path.write_text("lost\n")
    writer = MetricsWriter(path, tmp_path / "tensorboard", 3, saved=saved)
    writer.close()
    assert writer.best_bpb == 2.0, "the one of step 4 is still to come"
    assert without_timing(path) == lines[:3]
    MetricsWriter(path, tmp_path / "tensorboard", 9, saved=tmp_path / "none").close()
    assert without_timing(path) == lines[:3], "where there is no copy the file itself stands"


class Lines(list):
    """Stands for a `MetricsWriter`."""

    best_bpb = math.inf

    def write(self, line):
        self.append(line)


def step_log(writer, losses=()):
    return StepLog(writer, steps=5, every=2, tokens_per_step=8.5, bpb_per_nat=0.5, losses=list(losses))


def test_a_line_holds_the_mean_loss_since_the_previous_line():
    lines = Lines()
    log = step_log(lines, losses=[3.0])  # of a step before the process was killed
    for step, loss in ((2, 5.0), (3, 7.0), (4, 8.0), (5, 1.0)):
        log.add(step, {"loss": loss, "grad_norm": step / 10}, tokens_per_second=12.345)
    shown = [(line["step"], line["loss"], line["bpb"], line["grad_norm"], line["tokens"]) for line in lines]
    assert shown == [(2, 4.0, 2.0, 0.2, 17), (4, 7.5, 3.75, 0.4, 34), (5, 1.0, 0.5, 0.5, 42)]
    assert lines[0]["timing"] == {"tokens_per_second": 12.3}
    assert log.losses == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_metric_stops_training(value):
    lines = Lines()
    with pytest.raises(RunError, match=f"grad_norm is {value} at step 2: training has diverged"):
        step_log(lines).add(2, {"loss": 1.0, "grad_norm": value}, 1.0)
    assert not lines


def test_the_best_is_lower_than_all_earlier_ones():
    lines = Lines()
    log = step_log(lines)
    scores = (2.0, 2.0, 1.5, 1.75, 1.25)
    assert [log.validation(s, {"loss": 1.0, "bpb": bpb}) for s, bpb in enumerate(scores)] == [1, 0, 1, 0, 1]
    assert lines[2] == {"step": 2, "validation_loss": 1.0, "validation_bpb": 1.5}
    log.validation(9, {"loss": 1.0, "bpb": 1.0, "accuracy": 0.5, "other": 7.0})
    assert lines[-1].keys() == {"step", "validation_loss", "validation_bpb", "validation_accuracy"}


def test_a_process_that_writes_nothing_has_no_best():
    writer = NullMetricsWriter()
    writer.write({"step": 1})
    writer.sync()
    writer.close()
    assert writer.best_bpb == math.inf


def test_a_written_line_is_flushed_at_once(tmp_path):
    """Whatever becomes of the process, and without `sync`."""
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    before = events.stat().st_size
    writer.write({"step": 1, "loss": 2.0})
    assert without_timing(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    assert events.stat().st_size > before
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write({"step": 2})


def test_times_and_throughput_are_under_timing_only(tmp_path):
    before = time.time()
    write(tmp_path, 0, [{"step": 1, "timing": {"tokens_per_second": 5.0}}])
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line.keys() == {"step", "timing"}
    assert line["timing"]["tokens_per_second"] == 5.0
    assert before - 0.001 <= line["timing"]["time"] <= time.time() + 0.001
