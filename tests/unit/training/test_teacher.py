"""Search against plain answers: the comparison, and what is read of two run folders."""

import asyncio
from dataclasses import asdict, replace
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.case_prompts import case_prompt
from actors.request_log import RequestLog
from actors.sampled_answers import SampledAnswers, sampling_plan
from actors.search_folder import PatientSummary, SearchFolder
from ehr.errors import RunFolderError
from services.types import BASE_POLICY
from tests.scripted import (
    CONTEXT,
    FRAME,
    Call,
    CharTokenizer,
    ScriptedGenerator,
    SearchPlan,
    case_of,
    judge_of,
    sensible,
)
from training.config.run import RunConfig
from training.experiments.best_of import (
    Answer,
    Searched,
    best_of_budget,
    comparison,
    num_affordable,
)
from training.experiments.best_of import top_value as top
from training.experiments.teacher import (
    compare,
    ratios,
    read_sampled,
    table,
)
from training.run.folder import RunFolder

FLOOR = -4.0
CONFIG = RunConfig.model_validate({"search": {"num_rollouts": 5, "num_kept_trajectories": 2}})

rewards = st.lists(
    st.tuples(st.integers(-40, 10), st.booleans(), st.integers(1, 50)), min_size=1, max_size=8
)


def answer(text: str, reward: float, tokens: int = 10, readable: bool = True) -> Answer:
    costs = {"decode_tokens": tokens, "requests": 1}
    return Answer(text=text, reward=reward, readable=readable, costs=costs)


def answers_of(drawn: list[tuple[int, bool, int]]) -> list[Answer]:
    return [
        answer(str(number), reward / 10, tokens, readable)
        for number, (reward, readable, tokens) in enumerate(drawn)
    ]


def searched(reward: float, tokens: int) -> Searched:
    costs = {"decode_tokens": tokens, "requests": 2}
    return Searched(answers=(answer("tree", reward),), costs=costs)


def test_one_text_counts_once_and_an_unreadable_one_never() -> None:
    found = [answer("a", 1.0), answer("a", 1.0), answer("b", 0.0), answer("c", 9.0, readable=False)]

    assert top(found, 1, FLOOR) == 1.0
    assert top(found, 2, FLOOR) == 0.5
    assert top(found, 9, FLOOR) == 0.5
    assert top(found[3:], 2, FLOOR) == FLOOR


def test_a_budget_pays_for_whole_answers() -> None:
    assert [num_affordable([10, 10, 5], budget) for budget in (9, 10, 24, 25, 99)] == [
        0,
        1,
        2,
        3,
        3,
    ]


def test_one_answer_of_two_is_the_mean_of_both_orders() -> None:
    pair = [answer("a", 1.0), answer("b", 0.0)]

    assert best_of_budget(pair, "decode_tokens", 10, 1, FLOOR) == pytest.approx(0.5, abs=0.15)
    assert best_of_budget(pair, "decode_tokens", 20, 1, FLOOR) == 1.0
    assert best_of_budget(pair, "decode_tokens", 9, 1, FLOOR) == FLOOR


@settings(max_examples=40)
@given(rewards)
def test_a_larger_budget_never_hurts_the_best_answer(drawn: list[tuple[int, bool, int]]) -> None:
    answers = answers_of(drawn)
    budgets = [0, *accumulate(each.costs["decode_tokens"] for each in answers)]

    found = [best_of_budget(answers, "decode_tokens", each, 1, FLOOR) for each in budgets]

    assert all(first <= second + 1e-9 for first, second in pairwise(found))
    assert found[0] == FLOOR
    assert found[-1] == top(answers, 1, FLOOR)


def test_the_comparison_is_paired_and_says_where_the_budget_was_not_spent() -> None:
    trees = {"p1": searched(1.0, 20), "p2": searched(0.5, 1000)}
    plain = {"p1": [answer("a", 0.0), answer("b", 0.5)], "p2": [answer("a", 0.1)]}

    found = comparison(trees, plain, "decode_tokens", 1, FLOOR)

    assert found["search"] == 0.75
    assert found["samples"] == pytest.approx(0.3)
    assert found["difference"] == pytest.approx(0.45)
    assert (found["low"], found["high"]) == (pytest.approx(0.4), pytest.approx(0.5))
    assert found["num_short"] == 1
    assert found["num_samples"] == pytest.approx((2 + 100) / 2)


def test_a_comparison_of_other_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="same patients"):
        comparison({"p1": searched(1.0, 9)}, {"p2": [answer("a", 0.0)]}, "requests", 1, FLOOR)


def same_for_all(call: Call) -> str:
    """Answers that depend on nothing but what is asked for."""
    return sensible(replace(call, rng=Random(0)))


def write_run(folder: Path, method: str, script=sensible, config: RunConfig = CONFIG) -> Path:
    """A run folder with a finished search of one patient, made of plain answers either way."""
    section = config.search.model_copy(update={"method": method})
    run = RunFolder(folder)
    run.create()
    run.write_config(config.model_copy(update={"search": section}), None)
    files = SearchFolder(folder / "search")
    prompt = case_prompt(case_of(), "question_decomposition", CONTEXT, CharTokenizer(), FRAME)
    patient_id = prompt.case.patient_id
    plan = sampling_plan(section, CONTEXT)
    judge = judge_of(SearchPlan(section=section))
    with RequestLog(files.requests(patient_id), ScriptedGenerator(script=script)) as log:
        answers = SampledAnswers(prompt, log, CharTokenizer(), judge, section, plan, BASE_POLICY)
        result = asyncio.run(answers.run())
    summary = PatientSummary(
        patient_id=patient_id,
        rollouts=section.num_rollouts,
        trajectories=len(result.trajectories),
        kept=sum(row.kept for row in result.trajectories),
        best_reward=result.trajectories[0].reward,
        search=asdict(result.counts),
        calls=asdict(log.counts),
        started_unix_s=0.0,
        finished_unix_s=1.0,
    )
    files.write(result, summary)
    files.merge([patient_id])
    calls = log.counts
    files.write_ledger(
        {
            "decode_tokens": calls.decode_tokens,
            "requests": calls.requests,
            "requests_by_kind": calls.by_kind,
            "rollouts": section.num_rollouts,
        }
    )
    finish(run, "search")
    return folder


def finish(run: RunFolder, stage: str) -> None:
    record = run.stage(stage)
    record.begin({"settings": {}, "inputs": {}})
    record.finish(1.0, "output")


def evaluated(folder: Path, probabilities: list[float]) -> Path:
    path = folder / "evaluate" / "predictions.parquet"
    path.parent.mkdir()
    pd.DataFrame(
        {
            "patient_id": ["a", "b", "c", "d"],
            "method": "stage1",
            "label": [0, 0, 1, 1],
            "probability": probabilities,
            "parse_failed": False,
        }
    ).to_parquet(path)
    finish(RunFolder(folder), "evaluate")
    return folder


def test_every_answer_of_the_log_is_read_those_of_one_text_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "samples", "samples", same_for_all)

    ((patient_id, found),) = read_sampled(run).items()
    summary = SearchFolder(run / "search").finished(patient_id)

    assert summary is not None
    assert summary.trajectories < len(found) == 5
    for cost in ("decode_tokens", "requests"):
        assert sum(each.costs[cost] for each in found) == summary.calls[cost]
    stored = pd.read_parquet(run / "search" / "trajectories.parquet")
    assert {each.text for each in found} == set(stored["text"])


def test_the_same_answers_at_their_own_cost_do_not_differ(tmp_path: Path) -> None:
    first = evaluated(write_run(tmp_path / "tree", "tree"), [0.1, 0.2, 0.8, 0.9])
    second = evaluated(write_run(tmp_path / "samples", "samples"), [0.9, 0.8, 0.2, 0.1])

    rows = compare(first, second)

    assert ratios(rows) == {
        "top_k_difference_equal_decode_tokens": 0.0,
        "top_k_difference_equal_requests": 0.0,
        "auroc_difference": 1.0,
    }
    assert len(table(rows)) == len(rows) == 2 + 2 * 6 + 1


def test_policies_are_left_out_until_both_are_evaluated(tmp_path: Path) -> None:
    first = evaluated(write_run(tmp_path / "tree", "tree"), [0.1, 0.2, 0.8, 0.9])
    second = write_run(tmp_path / "samples", "samples")

    assert ratios(compare(first, second))["auroc_difference"] is None


def test_runs_that_differ_in_more_than_the_method_are_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "tree", "tree")
    section = CONFIG.search.model_copy(update={"num_kept_trajectories": 1})
    other = CONFIG.model_copy(update={"search": section})
    second = write_run(tmp_path / "samples", "samples", config=other)

    with pytest.raises(RunFolderError, match="num_kept_trajectories"):
        compare(first, second)
    with pytest.raises(RunFolderError, match="name the search first"):
        compare(second, first)
