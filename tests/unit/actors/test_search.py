"""The search of paper section 3.2, sentence by sentence, with scripted models."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from actors.seeds import call_seed
from ehr.errors import SearchError
from ehr.language.trajectory import FINAL_SENTENCE, parse_trajectory
from tests.scripted import (
    GARBAGE,
    Call,
    Script,
    ScriptedGenerator,
    SearchPlan,
    SearchRun,
    empty,
    endless,
    repeating,
    run_scripted,
    sensible,
    untagged,
)
from tests.typed import known

FLOOR = 0.6 * math.log(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def _run(plan: SearchPlan, path: Path, script: Script = sensible) -> SearchRun:
    return asyncio.run(run_scripted(plan, ScriptedGenerator(script=script), path))


def _never_final(call: Call) -> str:
    """A new question every time, the final only where it is forced."""
    if call.kind == "step":
        return f"Subquestion {call.depth}>\nIs it {call.rng.random():.9f}?\n"
    if call.kind == "opening":
        return f"<Subquestion 1>\nIs it {call.rng.random():.9f}?\n</Subquestion 1>"
    return sensible(call)


def _script(kind: str, text: str) -> Script:
    return lambda call: text if call.kind == kind else _never_final(call)


@pytest.mark.parametrize("format", ["guided", "free"])
def test_the_papers_sizes_cost_what_the_arithmetic_says(path: Path, format: str) -> None:
    plan = replace(
        SearchPlan().with_section(num_rollouts=8, num_candidates=3, max_depth=7), format=format
    )

    run = _run(plan, path, _never_final)

    # One path of 6 steps, 2 of 6 under other children of the root, 5 of 5 below those; lazy.
    assert run.calls.by_kind["final"] == 8
    assert run.calls.by_kind["question"] == 6 + 2 * 5 + 5 * 4
    assert run.calls.by_kind["score"] == 3 * run.calls.by_kind["question"]
    assert run.calls.by_kind["answer"] == 6 + 2 * 6 + 5 * 5


def test_an_expansion_is_one_request_of_d_samples(path: Path) -> None:
    run = _run(SearchPlan().with_section(num_candidates=4, num_rollouts=1), path, _never_final)

    proposals = [r for r in run.generator.requests if r.sampling.n == 4]
    assert len(proposals) == run.calls.by_kind["question"] == 3


def test_scores_never_see_an_unanswered_steps_answer_or_a_rival(path: Path) -> None:
    run = _run(SearchPlan(), path)

    scores = [r for r in run.generator.requests if r.sampling.regex == "100|[1-9][0-9]?"]
    for request in scores:
        prompt = "".join(map(chr, request.prompt_token_ids))
        assert prompt.endswith("The usefulness score is: ")
        steps = prompt.rpartition("Subquestions so far:\n")[2]
        assert steps.count("</Subquestion") - steps.count("</Answer") in (0, 1)


def test_scores_have_room_for_a_hundred_and_are_greedy(path: Path) -> None:
    run = _run(SearchPlan(), path)

    scores = [r.sampling for r in run.generator.requests if r.sampling.max_tokens == 4]
    assert len(scores) == run.calls.by_kind["score"]
    assert {sampling.temperature for sampling in scores} == {0.0}


def test_every_call_has_stops_a_limit_and_a_seed(path: Path) -> None:
    run = _run(SearchPlan(), path)

    for request in run.generator.requests:
        assert request.sampling.stop
        assert request.sampling.max_tokens > 0
        assert request.sampling.seed is not None
        assert request.session == "p1"


def test_seeds_depend_on_run_patient_path_kind_and_index() -> None:
    seeds = {
        call_seed(11, "p1", "0/1", "score", 0),
        call_seed(12, "p1", "0/1", "score", 0),
        call_seed(11, "p2", "0/1", "score", 0),
        call_seed(11, "p1", "0/2", "score", 0),
        call_seed(11, "p1", "0/1", "answer", 0),
        call_seed(11, "p1", "0/1", "score", 1),
    }

    assert len(seeds) == 6
    assert call_seed(11, "p1", "0/1", "score", 0) == 760909030  # stable across processes
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_final_is_forced_at_depth_t_greedily_and_unscored(path: Path) -> None:
    run = _run(SearchPlan().with_section(max_depth=2, num_rollouts=3), path, _never_final)

    finals = [node for node in run.root.subtree() if node.terminal]
    assert [node.depth for node in finals] == [2, 2, 2]
    assert all(node.content.question == FINAL_SENTENCE for node in finals)
    assert run.result.counts.forced_finals == 3
    assert run.calls.by_kind["score"] == 3
    requests = [r for r in run.generator.requests if "Final" in (r.sampling.stop[0])]
    assert {r.sampling.temperature for r in requests if r.sampling.n == 1} == {0.0}


def test_a_final_that_the_model_opens_is_sampled_and_a_revisit_asks_nothing(path: Path) -> None:
    plan = SearchPlan().with_section(num_candidates=2, num_rollouts=6)

    run = _run(plan, path, lambda c: "Final subquestion>" if c.kind == "step" else sensible(c))

    final = known(run.root.children)[0]
    assert (len(known(run.root.children)), final.terminal, final.visit_count) == (1, True, 6)
    assert run.calls.by_kind["final"] == 1
    request = next(r for r in run.generator.requests if r.sampling.stop == ("</Final answer",))
    assert request.sampling.temperature == 0.2
    assert run.result.counts.forced_finals == 0


def test_duplicates_are_resampled_twice_at_most(path: Path) -> None:
    run = _run(SearchPlan().with_section(max_depth=2, num_rollouts=1), path, repeating)

    assert len(known(run.root.children)) == 1
    assert run.calls.by_kind["question"] == 3
    assert run.result.counts.resample_requests == 2
    assert run.result.counts.duplicate_questions == 2 + 2 + 2
    assert [r.sampling.n for r in run.generator.requests if r.sampling.temperature == 0.8] == [
        3,
        2,
        2,
    ]


def test_the_same_question_for_ever_ends_in_a_forced_final(path: Path) -> None:
    run = _run(SearchPlan().with_section(max_depth=5), path, repeating)

    assert run.result.counts.exhausted_expansions == 1
    assert {node.depth for node in run.root.subtree() if node.terminal} == {2}


def test_an_unreadable_score_is_asked_again_then_counts_as_fifty_with_a_flag(path: Path) -> None:
    plan = SearchPlan().with_section(max_depth=2, num_rollouts=1)

    run = _run(plan, path, _script("score", "very useful"))

    assert run.calls.by_kind["score"] == 6
    assert (run.result.counts.scores, run.result.counts.invalid_scores) == (3, 3)
    assert [c.usefulness for c in known(run.root.children)] == [49 / 99] * 3
    assert all(c.content.score_is_neutral for c in known(run.root.children))


def test_a_score_cut_at_its_limit_is_invalid(path: Path) -> None:
    run = _run(
        SearchPlan().with_section(max_depth=2, num_rollouts=1), path, _script("score", "10000")
    )

    assert run.result.counts.invalid_scores == 3


def test_no_readable_final_is_retried_once_then_gets_the_floor_and_is_never_kept(
    path: Path,
) -> None:
    plan = replace(SearchPlan().with_section(max_depth=1, num_rollouts=2), format="free")

    run = _run(plan, path, _script("final", "I cannot say."))

    final = known(run.root.children)[0]
    assert run.calls.by_kind["final"] == 2
    assert (final.reward, final.visit_count) == (FLOOR, 2)
    assert run.root.value == FLOOR
    counts = run.result.counts
    assert (counts.final_retries, counts.unreadable_finals) == (1, 1)
    assert [row.kept for row in run.result.trajectories] == [False]


def test_a_retry_that_can_be_read_saves_the_trajectory(path: Path) -> None:
    plan = replace(SearchPlan().with_section(max_depth=1, num_rollouts=1), format="free")
    texts = iter(["no", "pH\n</Important Features>\n<Final answer> 0.90"])

    run = _run(plan, path, lambda call: next(texts))

    parsed = parse_trajectory(run.result.trajectories[0].text)
    assert (parsed.probability, parsed.features) == (0.9, ("pH",))
    assert run.result.trajectories[0].kept


def test_a_guided_final_whose_names_run_too_long_loses_the_last_one(path: Path) -> None:
    plan = SearchPlan().with_section(max_depth=1, num_rollouts=1, final_tokens=40)

    run = _run(
        plan,
        path,
        lambda c: (
            "pH, Glucose, Heart Rate, Temperature, Weight\n"
            if c.kind in ("guided final", "features")
            else "0.81\n"
        ),
    )

    row = run.result.trajectories[0]
    assert row.features == ("Glucose", "Heart Rate", "Temperature", "pH")
    assert (row.probability, row.readable) == (0.81, True)
    assert run.result.counts.final_retries == 1


def test_cut_questions_and_answers_are_counted(path: Path) -> None:
    plan = SearchPlan().with_section(max_depth=2, num_rollouts=1)

    def script(call: Call) -> str:
        if call.kind == "step":
            return f"Subquestion 1>\nIs {call.rng.random():.9f}? And " + "so " * 99
        return "It rose. Then " + "it " * 99 if call.kind == "line" else sensible(call)

    run = _run(plan, path, script)

    assert run.result.counts.cut_questions == 3
    assert run.result.counts.cut_answers == 1
    assert all(child.content.question.endswith("?") for child in known(run.root.children))
    assert [c.content.answer for c in known(run.root.children) if c.visit_count] == ["It rose."]


def test_endless_questions_are_dropped_and_the_final_is_forced(path: Path) -> None:
    run = _run(SearchPlan(), path, endless)

    assert run.result.counts.dropped_questions == 9
    assert [node.depth for node in run.root.subtree() if node.terminal] == [1]


@pytest.mark.parametrize("format", ["guided", "free"])
@pytest.mark.parametrize("script", GARBAGE)
def test_garbage_is_counted_and_neither_crashes_nor_hangs(
    path: Path, format: str, script: Script
) -> None:
    run = _run(replace(SearchPlan(), format=format), path, script)

    counts = run.result.counts
    assert run.root.visit_count == 8
    assert run.calls.requests < 400
    assert (
        counts.unreadable_finals
        + counts.invalid_scores
        + counts.dropped_questions
        + counts.duplicate_questions
        + counts.untagged_openings
        + counts.misnumbered_openings
        + counts.non_latin_texts
        + counts.cut_answers
        > 0
    )


def test_empty_text_everywhere_still_gives_a_terminal_with_the_floor(path: Path) -> None:
    run = _run(SearchPlan(), path, empty)

    assert [row.reward for row in run.result.trajectories] == [FLOOR]
    assert run.result.counts.dropped_questions == 9


def test_a_free_model_without_tags_is_taken_to_ask(path: Path) -> None:
    run = _run(replace(SearchPlan(), format="free"), path, untagged)

    assert run.result.counts.untagged_openings > 0
    assert not any(n.terminal and not n.content.forced for n in run.root.subtree())


def test_the_context_guard_forces_the_final_instead_of_truncating(path: Path) -> None:
    deep = SearchPlan().with_section(max_depth=12, question_tokens=50, answer_tokens=60)
    free = _run(deep, path, _never_final)
    longest = max(len(r.prompt_token_ids) for r in free.generator.requests)

    plan = replace(deep, max_model_len=longest - 200)
    tight = _run(plan, path.with_name("tight.jsonl"), _never_final)

    assert tight.result.counts.context_finals > 0
    assert tight.result.counts.unreadable_finals == 0
    for request in tight.generator.requests:
        assert len(request.prompt_token_ids) + request.sampling.max_tokens <= plan.max_model_len
    limits = {r.sampling.max_tokens for r in free.generator.requests}
    assert {r.sampling.max_tokens for r in tight.generator.requests} <= limits


def test_a_case_without_room_for_a_step_is_refused_before_any_call(path: Path) -> None:
    generator = ScriptedGenerator()

    with pytest.raises(SearchError, match=r"lower prompt\.max_prompt_tokens"):
        asyncio.run(run_scripted(replace(SearchPlan(), max_model_len=1500), generator, path))

    assert generator.requests == []


def test_guided_caller_written_tokens_are_no_models(path: Path) -> None:
    run = _run(SearchPlan().with_section(max_depth=2), path, _never_final)

    row = run.result.trajectories[0]
    written = "".join(c for c, own in zip(row.text, row.model_written, strict=True) if own)
    step, features, probability = written.split("\n")[0], *written.split("\n")[-3:-1]
    assert step.startswith("SIs it 0.")  # the choice token and the question
    assert "<" not in written
    assert features.count(",") == 4
    assert probability.startswith("0.")


def test_free_tokens_are_all_the_models(path: Path) -> None:
    run = _run(replace(SearchPlan(), format="free"), path)

    assert all(all(row.model_written) for row in run.result.trajectories)


def test_the_first_failure_among_siblings_is_raised_as_itself(path: Path) -> None:
    generator = ScriptedGenerator(fail_at=2)

    with pytest.raises(ConnectionError, match="the script ends here"):
        asyncio.run(run_scripted(SearchPlan(), generator, path))


def test_the_tree_record_is_parents_first_and_marks_the_best_path(path: Path) -> None:
    run = _run(SearchPlan(), path)

    nodes = run.result.nodes
    assert nodes[0].parent is None
    assert all(known(node.parent) < node.id for node in nodes[1:])
    best = [node for node in nodes if node.on_best_path]
    assert best[-1].reward == run.result.trajectories[0].reward
    assert [node.parent for node in best[1:]] == [node.id for node in best[:-1]]
