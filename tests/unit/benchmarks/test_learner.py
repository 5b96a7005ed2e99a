"""The learner's benchmark: its processes, its growing results, and that all arms do the same."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.learner import __main__ as learner
from benchmarks.learner.cell import (
    OUT_OF_MEMORY,
    RESULT,
    Cell,
    at,
    cell_of,
)
from benchmarks.learner.cell_process import run_limited
from benchmarks.learner.flops import Flops
from benchmarks.learner.ours import forwards_of, measure
from benchmarks.learner.random_model import write_random_model
from benchmarks.learner.results import (
    line,
    merged,
    ratios,
    row_of,
)
from training.config.learner import LearnerSection
from training.learner.policy_model import load_policy_model

CELL = Cell(arm="ours", model_name="tiny", model_path="nowhere", prompt_tokens=1500)
FLOPS = Flops(forward=1e12, backward=2e12)


def result(*train: float, peak: float = 4.0) -> dict:
    return {
        "outcome": "measured",
        "peak_gib": peak,
        "train_seconds": list(train),
        "old_seconds": [each / 2 for each in train],
        "matmul_rates": [2e12 for _ in train],
    }


def rows_of(*measured: tuple[Cell, dict]) -> dict:
    rows = {}
    for cell, values in measured:
        row = merged(rows, row_of(cell, values, FLOPS, "abc"))
        rows[row["key"]] = row
    return rows


def test_a_cell_survives_the_way_into_its_process() -> None:
    assert cell_of(CELL.to_json()) == CELL


def test_repetitions_of_the_same_code_are_added_and_their_medians_taken() -> None:
    (row,) = rows_of((CELL, result(10.0, 20.0)), (CELL, result(30.0, peak=5.0))).values()

    assert row["train_seconds"] == [10.0, 20.0, 30.0]
    assert (row["train_s"], row["old_logprob_s"], row["group_s"]) == (20.0, 10.0, 30.0)
    assert row["useful_tokens_per_s"] == 8 * 256 / 20
    assert row["fraction_of_matmul_rate"] == pytest.approx(3 / 20 / 2)
    assert row["peak_gib"] == 5.0
    assert "20.00 s,    102 answer tokens/s,   5.0 GiB,  7.5 % of 2.00 TFLOP/s" in line(row)


def test_other_code_or_an_end_by_memory_replaces_what_was_measured() -> None:
    rows = rows_of((CELL, result(10.0)))

    newer = merged(rows, row_of(CELL, result(30.0), FLOPS, "def"))
    killed = merged(rows, row_of(CELL, {"outcome": OUT_OF_MEMORY}, FLOPS, "abc"))

    assert newer["train_seconds"] == [30.0]
    assert "train_seconds" not in killed
    assert line(killed).endswith(": out of memory")


def test_ratios_are_against_the_other_side_s_best_setting() -> None:
    trl = at(CELL, arm="trl")
    rows = rows_of(
        (CELL, result(10.0, peak=4.5)),
        (at(CELL, checkpointing=True), result(14.0, peak=2.5)),
        (at(CELL, arm="dense_rows", micro_batch=1), result(32.0)),
        (at(CELL, arm="dense_sdpa", micro_batch=2), result(30.0)),
        (at(trl, micro_batch=1), result(60.0, peak=9.0)),
        (at(trl, micro_batch=2), result(50.0, peak=12.0)),
        (at(trl, micro_batch=1, checkpointing=True), result(90.0, peak=6.0)),
        (at(trl, micro_batch=2, checkpointing=True), result(101.0, peak=5.0)),
        (at(trl, micro_batch=8), {"outcome": OUT_OF_MEMORY, "peak_gib": 16.0}),
        (at(CELL, prompt_tokens=4096), result(99.0)),
    )

    found = ratios(rows)

    assert found["vs_dense_p1500"] == 3.0
    assert found["vs_trl_p1500"] == 5.0
    assert found["trl_peak_gib_p1500"] == 6.0
    assert (found["peak_gib_p1500"], found["peak_gib_checkpointed_p1500"]) == (4.5, 2.5)
    assert found["fraction_of_matmul_rate_p1500"] == pytest.approx(3 / 10 / 2)
    assert not [name for name in found if name.endswith("p4096")]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (f"print('noise'); print({RESULT!r} + '{{\"outcome\": \"measured\"}}')", "measured"),
        ("import time; held = bytearray(400 << 20); time.sleep(60)", OUT_OF_MEMORY),
        ("raise SystemExit('no such model')", "failed"),
        ("import time; time.sleep(60)", "timed out"),
    ],
)
def test_a_cell_ends_as_its_process_does(code: str, expected: str) -> None:
    timeout_s = 1.0 if expected == "timed out" else 60.0

    found = run_limited([sys.executable, "-c", code], 200 << 20, timeout_s)

    assert found["outcome"] == expected
    assert expected != OUT_OF_MEMORY or found["peak_gib"] > 200 / 1024
    assert expected != "failed" or "no such model" in found["reason"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_model("tiny", folder)
    return folder


def test_every_arm_computes_the_same_log_probabilities(model_folder: Path) -> None:
    cell = at(CELL, model_path=str(model_folder), prompt_tokens=12, answer_tokens=6, group_size=4)
    arms = (cell, at(cell, arm="dense_rows", micro_batch=2), at(cell, arm="dense_sdpa"))

    computed, num_forwards = [], []
    for arm in arms:
        section = LearnerSection(lora_rank=4)
        model = load_policy_model(model_folder, section, dtype="bfloat16", seed=0)
        logprobs = torch.zeros(4, 6)
        forwards = forwards_of(arm, model)
        num_forwards.append(len(forwards))
        with torch.no_grad():
            for members, forward in forwards:
                logprobs[members] = forward(False)
        computed.append(logprobs)

    assert num_forwards == [1, 2, 4]
    torch.testing.assert_close(computed[0], computed[1], atol=0.05, rtol=0)
    torch.testing.assert_close(computed[0], computed[2], atol=0.05, rtol=0)


def test_a_cell_measures_both_passes(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["benchmarks.learner.cell"]._RATE_SIZE, "cpu", 32)
    cell = at(CELL, model_path=str(model_folder), prompt_tokens=12, answer_tokens=6, turns=2)

    found = measure(at(cell, lora_rank=4))

    assert [len(found[name]) for name in ("train_seconds", "old_seconds", "matmul_rates")] == [
        2
    ] * 3
    assert found["peak_gib"] >= found["loaded_gib"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it does without a GPU")
def test_arms_that_cannot_run_here_say_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["learner", "--arms", "trl", "gpu"])

    assert list(learner.cells(learner.parse())) == []

    said = capsys.readouterr().out
    assert "gpu: skipped" in said
    assert "pip install --no-deps trl==" in said
