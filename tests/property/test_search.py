"""The search with scripted models, sensible and not: what always holds."""

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.reading import same_question_key
from tests.scripted import (
    FEATURES,
    GARBAGE,
    Script,
    ScriptedGenerator,
    SearchPlan,
    SearchRun,
    run_scripted,
    sensible,
)

few = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

plans = st.builds(
    lambda format, **section: replace(SearchPlan().with_section(**section), format=format),
    format=st.sampled_from(["guided", "free"]),
    num_rollouts=st.integers(1, 7),
    num_candidates=st.integers(1, 4),
    max_depth=st.integers(1, 5),
    exploration_weight=st.sampled_from([0.0, 0.5, 2.0]),
    answers=st.sampled_from(["lazy", "eager"]),
    seed=st.integers(0, 1000),
)
scripts = st.sampled_from([sensible, sensible, *GARBAGE])


def _run(plan: SearchPlan, generator: ScriptedGenerator) -> SearchRun:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run_scripted(plan, generator, Path(folder) / "log.jsonl"))


def _shape(run: SearchRun) -> object:
    return (run.result.nodes, run.result.trajectories, run.result.counts)


@few
@given(plans, scripts)
def test_visit_counts_are_conserved_and_depth_is_bounded(plan: SearchPlan, script: Script) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    assert run.root.visit_count == plan.section.num_rollouts
    for node in run.root.subtree():
        assert node.depth <= plan.section.max_depth
        if node.children is not None:
            assert node.visit_count == sum(child.visit_count for child in node.children)
            assert 1 <= len(node.children) <= plan.section.num_candidates


@few
@given(plans, scripts)
def test_values_and_usefulness_stay_within_their_bounds(plan: SearchPlan, script: Script) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    rewards = [node.reward for node in run.root.subtree() if node.reward is not None]
    for node in run.root.subtree():
        assert 0 <= node.usefulness <= 1
        if node.visit_count:
            assert min(rewards) - 1e-9 <= node.value <= max(rewards) + 1e-9
    assert all(-2.764 <= reward <= 0.688 for reward in rewards)


@few
@given(plans, scripts, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 2.5]))
def test_values_stay_within_the_bounds_of_any_reward(
    plan: SearchPlan, script: Script, weight: float, bonus: float
) -> None:
    run = _run(
        replace(plan, accuracy_weight=weight, margin_bonus=bonus), ScriptedGenerator(script=script)
    )

    lowest = weight * math.log(0.01)
    highest = weight * (math.log(0.99) + bonus * 0.49) + (1 - weight)
    for node in run.root.subtree():
        if node.visit_count:
            assert lowest - 1e-9 <= node.value <= highest + 1e-9


@few
@given(plans, scripts)
def test_no_question_is_asked_twice_under_a_parent_or_on_a_path(
    plan: SearchPlan, script: Script
) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    for node in run.root.subtree():
        siblings = [same_question_key(child.content.question) for child in node.children or []]
        above = {same_question_key(n.content.question) for n in node.lineage()[1:]}
        assert len(siblings) == len(set(siblings))
        assert not above & set(siblings)


@few
@given(plans, scripts)
def test_a_terminal_is_written_once_and_only_terminals_are_rewarded(
    plan: SearchPlan, script: Script
) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    assert len({request.sampling.seed for request in run.generator.requests}) == len(
        run.generator.requests
    )
    for node in run.root.subtree():
        assert (node.reward is not None) == (node.terminal and node.visit_count > 0)
        assert node.terminal == node.content.final
        assert not (node.terminal and node.children)


@few
@given(plans, scripts)
def test_a_childs_prompt_tokens_start_with_its_parents(plan: SearchPlan, script: Script) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    for trajectory in run.result.trajectories:
        assert len(trajectory.token_ids) == len(trajectory.model_written)
        assert "".join(map(chr, trajectory.token_ids)) == trajectory.text
    for node in run.root.subtree():
        parent = node.parent
        if parent is not None and node.content.answer is not None:
            own = [t for n in node.lineage() for p in n.content.pieces for t in p.token_ids]
            above = [t for n in parent.lineage() for p in n.content.pieces for t in p.token_ids]
            assert own[: len(above)] == above


@few
@given(plans, scripts)
def test_the_counts_equal_what_the_engine_was_asked(plan: SearchPlan, script: Script) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    engine = run.generator
    assert run.calls.requests == len(engine.requests) == sum(run.calls.by_kind.values())
    assert run.calls.prefill_tokens == engine.prefill_tokens
    assert run.calls.decode_tokens == engine.decode_tokens
    assert run.calls.prefill_computed_tokens == sum(
        len(r.prompt_token_ids) - len(r.prompt_token_ids) // 2 for r in engine.requests
    )
    assert run.calls.replayed_requests == 0


@few
@given(plans, scripts)
def test_latency_does_not_change_the_tree(plan: SearchPlan, script: Script) -> None:
    at_once = _run(plan, ScriptedGenerator(script=script))
    delayed = _run(plan, ScriptedGenerator(script=script, latency_s=0.002))

    assert _shape(at_once) == _shape(delayed)


@few
@given(plans, scripts, st.integers(0, 40))
def test_an_interrupted_search_replays_its_log_and_ends_the_same(
    plan: SearchPlan, script: Script, fail_at: int
) -> None:
    whole = _run(plan, ScriptedGenerator(script=script))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        broken = ScriptedGenerator(script=script, fail_at=fail_at)
        with suppress(ConnectionError):
            asyncio.run(run_scripted(plan, broken, path))
        resumed = asyncio.run(run_scripted(plan, ScriptedGenerator(script=script), path))

    assert _shape(whole) == _shape(resumed)
    assert resumed.calls.requests == whole.calls.requests
    asked_again = len(resumed.generator.requests)
    assert resumed.calls.replayed_requests == whole.calls.requests - asked_again


@few
@given(plans, scripts)
def test_a_replay_asks_nothing_even_of_an_engine_that_answers_otherwise(
    plan: SearchPlan, script: Script
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        first = asyncio.run(run_scripted(plan, ScriptedGenerator(script=script), path))
        again = asyncio.run(run_scripted(plan, ScriptedGenerator(script=sensible), path))

    assert _shape(first) == _shape(again)
    assert again.generator.requests == []


@few
@given(plans)
def test_label_and_salient_features_never_reach_a_prompt(plan: SearchPlan) -> None:
    sentinel, label = "SENTINEL-FEATURE-7f3a", 918273645
    one = _run(replace(plan, label=label, salient=frozenset([sentinel])), ScriptedGenerator())
    other = _run(replace(plan, label=0, salient=frozenset(FEATURES[3:])), ScriptedGenerator())

    prompts = ["".join(map(chr, request.prompt_token_ids)) for request in one.generator.requests]
    assert not any(sentinel in prompt or str(label) in prompt for prompt in prompts)
    assert _first_simulation(one) == _first_simulation(other)


@few
@given(plans, st.sampled_from([0.0625, 0.9375]))
def test_the_weights_of_salient_features_never_reach_a_prompt(
    plan: SearchPlan, weight: float
) -> None:
    stability = dict.fromkeys(plan.salient, weight) | {"SENTINEL-FEATURE-7f3a": 0.5}
    run = _run(replace(plan, stability=stability), ScriptedGenerator())

    prompts = ["".join(map(chr, request.prompt_token_ids)) for request in run.generator.requests]
    assert not any("SENTINEL" in prompt or str(weight) in prompt for prompt in prompts)
    assert _first_simulation(run) == _first_simulation(_run(plan, ScriptedGenerator()))


@few
@given(plans, scripts, st.none() | st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_label_changes_nothing_in_a_label_free_search(
    plan: SearchPlan, script: Script, risk: float | None, weight: float
) -> None:
    plan = replace(plan.with_section(value="label_free", usefulness_weight=weight), risk=risk)
    one, other = (
        _run(replace(plan, label=label), ScriptedGenerator(script=script)) for label in (0, 1)
    )

    assert one.result == other.result
    assert one.generator.requests == other.generator.requests
    for row in one.result.trajectories:
        assert (row.value_kind, row.reward_cls, row.correct) == ("label_free", None, None)
        assert 0 <= row.reward <= 1


@few
@given(plans)
def test_the_expert_reaches_no_prompt_of_a_label_free_search(plan: SearchPlan) -> None:
    plan = plan.with_section(value="label_free")
    sentinel = frozenset(["SENTINEL-FEATURE-7f3a"])
    one = _run(replace(plan, salient=sentinel, risk=0.8765432), ScriptedGenerator())
    other = _run(replace(plan, risk=0.1), ScriptedGenerator())

    prompts = ["".join(map(chr, request.prompt_token_ids)) for request in one.generator.requests]
    assert not any("SENTINEL" in prompt or "0.8765" in prompt for prompt in prompts)
    assert _first_simulation(one) == _first_simulation(other)


@few
@given(plans)
def test_the_first_simulation_asks_the_same_whatever_the_label(plan: SearchPlan) -> None:
    plan = plan.with_section(num_rollouts=1)

    runs = [_run(replace(plan, label=label), ScriptedGenerator()) for label in (0, 1)]

    assert runs[0].generator.requests == runs[1].generator.requests


@few
@given(plans)
def test_lazy_and_eager_answers_grow_the_same_tree(plan: SearchPlan) -> None:
    lazy = _run(plan.with_section(answers="lazy"), ScriptedGenerator())
    eager = _run(plan.with_section(answers="eager"), ScriptedGenerator())

    assert lazy.result.trajectories == eager.result.trajectories
    assert lazy.calls.by_kind.get("answer", 0) <= eager.calls.by_kind.get("answer", 0)


@few
@given(plans, scripts)
def test_kept_trajectories_are_readable_and_best_first(plan: SearchPlan, script: Script) -> None:
    run = _run(plan, ScriptedGenerator(script=script))

    rows = run.result.trajectories
    kept = [row for row in rows if row.kept]
    readable = [row for row in rows if row.readable]
    assert kept == readable[: plan.section.num_kept_trajectories]
    assert [row.reward for row in readable] == sorted((r.reward for r in readable), reverse=True)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert max(Counter(row.text for row in rows).values()) == 1


def _first_simulation(run: SearchRun) -> Sequence[object]:
    """Requests up to and including the first final: no reward has been seen yet."""
    requests = run.generator.requests
    final_stops = ("</Final answer",)
    ends = [i for i, r in enumerate(requests) if r.sampling.stop == final_stops]
    return requests[: ends[0] + 1]
