"""Anything a model may write: never an error, never a hang, always counted, never truncated."""

import asyncio
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ehr.errors import SearchError
from tests.scripted import (
    GARBAGE,
    ByteTokenizer,
    CharTokenizer,
    Script,
    ScriptedGenerator,
    SearchPlan,
    SearchRun,
    run_scripted,
    sensible,
    wide,
)
from tests.typed import known

some = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
few = settings(some, max_examples=5)

FRAGMENTS = (
    "<Subquestion 1>\n",
    "</Subquestion 1>",
    "<Final subquestion>",
    "Subquestion 2>\n",
    "Final subquestion>",
    "<Answer 9>",
    "</Answer",
    "<Important Features>\npH, Glucose\n</Important Features>\n",
    "<Final answer>\n",
    "85%",
    "1.2",
    "0.81\n",
    "42",
    "<|im_end|>",
    "?",
)
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=60), max_size=6).map("".join)


@st.composite
def writers(draw: st.DrawFn) -> Script:
    """Models that write one of a few arbitrary texts, whatever they are asked."""
    written = draw(st.lists(texts, min_size=1, max_size=5))
    return lambda call: call.rng.choice(written)


plans = st.builds(
    lambda format, tokenizer, **section: replace(
        SearchPlan().with_section(**section), format=format, tokenizer=tokenizer
    ),
    format=st.sampled_from(["guided", "free"]),
    tokenizer=st.sampled_from([CharTokenizer(), ByteTokenizer()]),
    num_rollouts=st.integers(1, 4),
    num_candidates=st.integers(1, 3),
    max_depth=st.integers(1, 4),
    question_tokens=st.sampled_from([10, 60]),
    answer_tokens=st.sampled_from([10, 60]),
    final_tokens=st.sampled_from([16, 200]),
    max_resamples=st.integers(0, 2),
    answers=st.sampled_from(["lazy", "eager"]),
)


@dataclass(frozen=True)
class Logged:
    """A search, and how many of its logged calls asked again."""

    run: SearchRun
    num_resamples: int
    num_retries: int


def _run(plan: SearchPlan, script: Script) -> Logged:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        run = asyncio.run(run_scripted(plan, ScriptedGenerator(script=script), path))
        keys = [json.loads(line)["key"].split(":") for line in path.read_bytes().splitlines()]
    return Logged(
        run,
        num_resamples=sum(kind == "question" and int(index) > 0 for _, kind, index in keys),
        num_retries=sum(
            (kind == "score" and int(index) % 2 == 1) or (kind == "final" and int(index) >= 10)
            for _, kind, index in keys
        ),
    )


def _most_requests(plan: SearchPlan) -> int:
    """Requests of N simulations that all go the whole way, every one asked again as often as it may
    be; d answers a step if they are eager."""
    section = plan.section
    d = section.num_candidates
    num_answers = d if section.answers == "eager" else 1
    expansion = 1 + section.max_resamples + 2 * d + num_answers
    return section.num_rollouts * (section.max_depth * expansion + 3)


def _check_counts(logged: Logged, plan: SearchPlan) -> None:
    """Every sample is a child or was counted as none, and every flaw is on a node."""
    run, counts = logged.run, logged.run.result.counts
    requests = run.generator.requests
    scored = [node for node in run.root.subtree() if node.content.scored]
    terminals = [node for node in run.root.subtree() if node.reward is not None]
    proposed = [r for r in requests if r.sampling.stop == ("</Subquestion", "</Final subquestion")]

    assert run.calls.requests == len(requests) <= _most_requests(plan)
    assert sum(r.sampling.n for r in proposed) == (
        len(scored) + counts.duplicate_questions + counts.dropped_questions
    )
    assert counts.scores == len(scored)
    assert counts.invalid_scores == sum(node.content.score_is_neutral for node in scored)
    assert counts.unreadable_finals == sum(
        known(node.content.verdict).format_failure is not None for node in terminals
    )
    assert counts.forced_finals == sum(node.content.forced for node in run.root.subtree())
    assert counts.resample_requests == logged.num_resamples
    assert counts.retry_requests == logged.num_retries
    assert run.root.visit_count == plan.section.num_rollouts


@some
@given(plans, writers())
def test_any_text_is_survived_counted_and_bounded(plan: SearchPlan, script: Script) -> None:
    logged = _run(plan, script)

    _check_counts(logged, plan)
    for row in logged.run.result.trajectories:
        assert plan.tokenizer.decode(row.token_ids) == row.text
        assert json.loads(json.dumps(row.text)) == row.text
        assert row.kept <= row.readable


@some
@given(plans, st.sampled_from(GARBAGE))
def test_every_known_misbehaviour_is_survived_counted_and_bounded(
    plan: SearchPlan, script: Script
) -> None:
    _check_counts(_run(plan, script), plan)


@settings(some, max_examples=10)
@given(
    plans,
    st.sampled_from([wide, sensible, *GARBAGE]) | writers(),
    st.just(0) | st.integers(0, 700),
)
@example(SearchPlan(tokenizer=ByteTokenizer()), wide, 0)
@example(SearchPlan(tokenizer=ByteTokenizer(), format="free"), wide, 0)
@example(SearchPlan(), wide, 0)
@example(SearchPlan(format="free"), wide, 0)
def test_no_request_exceeds_the_context_and_no_case_is_truncated(
    plan: SearchPlan, script: Script, spare: int
) -> None:
    deep = plan.with_section(max_depth=6)
    longest = _shortest_context(deep) + spare

    run = _run(replace(deep, max_model_len=longest), script).run

    heads = (run.prompts.case, run.prompts.usefulness_head)
    for request in run.generator.requests:
        asked = request.prompt_token_ids
        assert len(asked) + request.sampling.max_tokens <= longest
        assert any(asked[: len(head)] == head for head in heads)


def _shortest_context(plan: SearchPlan) -> int:
    """The least max_model_len with which a search starts, found by halving."""
    low, high = 100, 40_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _run(replace(plan.with_section(num_rollouts=1), max_model_len=middle), _nothing)
        except SearchError:
            low = middle
        else:
            high = middle
    return high


def _nothing(call: object) -> str:
    return ""


@few
@given(st.sampled_from([sensible, *GARBAGE]), st.sampled_from(["guided", "free"]))
def test_the_papers_sizes_cost_at_most_200_requests_beside_resamples_and_retries(
    script: Script, format: str
) -> None:
    plan = replace(
        SearchPlan().with_section(num_rollouts=8, num_candidates=3, max_depth=7), format=format
    )

    logged = _run(plan, script)

    counts = logged.run.result.counts
    again = counts.resample_requests + counts.retry_requests
    assert logged.run.calls.requests - again <= 200
