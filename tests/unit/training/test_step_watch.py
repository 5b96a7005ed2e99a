import json

import pytest
from tensorboardX.proto import event_pb2

from tests.typed import untyped
from training.run.metrics_file import MetricsFile
from training.run.step_watch import StepWatch, TensorBoardLog


class Collected:
    """A sink that remembers what it was told."""

    def __init__(self):
        self.calls = []

    def update(self, lines, num_known):
        self.calls.append(([line["step"] for line in lines], num_known))

    def close(self):
        self.calls.append("closed")


def write(path, *steps, loss=1.0):
    file = MetricsFile(path)
    for step in steps:
        file.append({"step": step, "sft/loss": loss})


def read_events(folder):
    """Step, tag and value of everything in the folder's event files, in their order."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            # A record: its length (8 bytes), a checksum (4), the event, a checksum (4).
            size = int.from_bytes(content[:8], "little")
            event = untyped(event_pb2).Event.FromString(content[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[16 + size :]
    return found


def test_only_steps_that_are_new_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    watch = StepWatch(path)

    before = watch.refresh()
    write(path, 1, 2)
    first = watch.refresh()
    unchanged = watch.refresh()
    write(path, 3)
    second = watch.refresh()

    assert (before, unchanged) == ([], [])
    assert [line["step"] for line in first] == [1, 2]
    assert [line["step"] for line in second] == [3]
    assert [line["step"] for line in watch.lines] == [1, 2, 3]


def test_a_step_that_is_done_again_is_new_and_what_followed_it_is_void(tmp_path):
    path, sink = tmp_path / "metrics.jsonl", Collected()
    watch = StepWatch(path, [sink])
    write(path, 1, 2, 3)
    watch.refresh()

    write(path, 2, loss=0.5)
    again = watch.refresh()

    assert [(line["step"], line["sft/loss"]) for line in again] == [(2, 0.5)]
    assert sink.calls == [([1, 2, 3], 0), ([1, 2], 1)]


def test_a_sink_hears_of_steps_that_were_taken_back(tmp_path):
    path, sink = tmp_path / "metrics.jsonl", Collected()
    watch = StepWatch(path, [sink])
    write(path, 1, 2, 3)
    watch.refresh()

    path.write_text("".join(json.dumps(line) + "\n" for line in watch.lines[:2]))

    assert watch.refresh() == []
    assert sink.calls[-1] == ([1, 2], 2)


def test_closing_hands_over_what_came_last(tmp_path):
    path, sink = tmp_path / "metrics.jsonl", Collected()
    watch = StepWatch(path, [sink])

    write(path, 1)
    watch.close()

    assert sink.calls == [([1], 0), "closed"]


def test_tensorboard_gets_every_number_under_its_step(tmp_path):
    log = TensorBoardLog(tmp_path)

    log.update([{"step": 1, "loss": 0.5, "entropy/salient_mean": None, "text": "x"}], 0)
    log.update([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "grad/norm": 2}], 1)
    log.close()

    assert read_events(tmp_path) == [(1, "loss", 0.5), (2, "loss", 0.25), (2, "grad/norm", 2.0)]


def test_tensorboard_has_a_step_that_is_done_again_once(tmp_path):
    log = TensorBoardLog(tmp_path)

    log.update([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 9.0}], 0)
    log.update([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}], 1)
    log.close()

    assert read_events(tmp_path) == [(1, "loss", 0.5), (2, "loss", 0.25)]


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": 0.5}]])
def test_tensorboard_of_a_resumed_stage_repeats_nothing(tmp_path, lines):
    first = TensorBoardLog(tmp_path)
    first.update([{"step": 1, "loss": 0.5}], 0)
    first.close()

    second = TensorBoardLog(tmp_path)
    if lines:
        second.update(lines, 0)
    second.close()

    assert read_events(tmp_path) == [(line["step"], "loss", line["loss"]) for line in lines]
