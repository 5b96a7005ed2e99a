"""Rollouts: exactly what was sampled, and who wrote it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from actors.rollouts import (
    MAX_IN_FLIGHT,
    Rollout,
    RolloutBatch,
    RolloutPlan,
    RolloutPrompt,
    RolloutSampler,
    rollouts_in_flight,
)
from ehr.language.json_answer import parse_think_json
from ehr.language.trajectory import parse_think, parse_trajectory, parse_vanilla
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    PolicyVersion,
    RiskReading,
    RiskRequest,
)
from tests.scripted import (
    GARBAGE,
    CharTokenizer,
    Script,
    ScriptedGenerator,
    endless,
    sensible,
)

PROMPT = RolloutPrompt(patient_id="p1", token_ids=tuple(map(ord, "[USER]case[ASSISTANT]")))


def _plan(**changes: object) -> RolloutPlan:
    settings = {
        "format": "guided",
        "kind": "question_decomposition",
        "max_depth": 3,
        "max_new_tokens": 500,
        "temperature": 1.0,
        **changes,
    }
    return RolloutPlan(**settings)


def _sample(plan: RolloutPlan, generator: ScriptedGenerator, index: int = 0) -> Rollout:
    sampler = RolloutSampler(generator, CharTokenizer(), plan)
    return asyncio.run(sampler.sample_rollout(PROMPT, least=BASE_POLICY, seed=3, index=index))


@pytest.mark.parametrize(
    ("kind", "parse"),
    [
        ("question_decomposition", parse_trajectory),
        ("short_answer", parse_trajectory),
        ("vanilla", parse_vanilla),
        ("think_then_answer", parse_think),
        ("think_then_answer_json", parse_think_json),
    ],
)
def test_every_guided_kind_gives_a_readable_probability(
    kind: str, parse: Callable[[str], Any]
) -> None:
    rollout = _sample(_plan(kind=kind), ScriptedGenerator())

    assert parse(rollout.text).probability is not None
    assert not rollout.truncated


@pytest.mark.parametrize(
    "text",
    [
        '{"think": "a set {x}", "answer": 0.85}',
        '{\n"think": "a",\n"answer": 0.85\n}',
        '```json\n{"think": "a", "answer": 0.85}\n```',
    ],
)
def test_a_free_json_answer_ends_behind_its_object(text: str) -> None:
    generator = ScriptedGenerator(script=lambda call: text + "\nAnother patient: 0.1")

    rollout = _sample(_plan(format="free", kind="think_then_answer_json"), generator)

    assert rollout.text.rstrip() == text.removesuffix("```").rstrip()
    assert parse_think_json(rollout.text).probability == 0.85
    assert not rollout.truncated


def test_tokens_mask_and_log_probabilities_have_one_length_and_agree() -> None:
    rollout = _sample(_plan(), ScriptedGenerator())

    assert "".join(map(chr, rollout.token_ids)) == rollout.text
    assert len(rollout.token_ids) == len(rollout.model_written) == len(rollout.generator_logprobs)
    for written, logprob in zip(rollout.model_written, rollout.generator_logprobs, strict=True):
        assert logprob == (-0.5 if written else 0.0)


def test_every_guided_token_of_the_model_is_constrained_and_none_of_the_callers() -> None:
    rollout = _sample(_plan(), ScriptedGenerator())

    assert rollout.constrained == rollout.model_written


def test_no_free_token_is_constrained() -> None:
    rollout = _sample(_plan(format="free"), ScriptedGenerator())

    assert rollout.constrained == (False,) * len(rollout.token_ids)


def test_the_model_writes_contents_and_the_choice_token_only() -> None:
    rollout = _sample(_plan(), ScriptedGenerator())

    own = zip(rollout.text, rollout.model_written, strict=True)
    written = "".join(character for character, is_model in own if is_model)
    assert "<" not in written
    assert written[0] in "SF"


def test_each_call_continues_what_was_written_before() -> None:
    generator = ScriptedGenerator()

    rollout = _sample(_plan(), generator)

    whole = rollout.prompt_token_ids + rollout.token_ids
    for request in generator.requests:
        assert whole[: len(request.prompt_token_ids)] == request.prompt_token_ids
    assert rollout.num_requests == len(generator.requests)
    assert len({request.sampling.seed for request in generator.requests}) == rollout.num_requests


def test_the_guided_final_is_forced_at_the_last_depth() -> None:
    generator = ScriptedGenerator(script=lambda c: "S" if c.kind == "choice" else sensible(c))

    rollout = _sample(_plan(max_depth=3), generator)

    assert rollout.text.count("</Answer") == 2
    assert "<Final subquestion>" in rollout.text


def test_a_free_rollout_is_one_request_that_keeps_its_stop() -> None:
    generator = ScriptedGenerator()

    rollout = _sample(_plan(format="free"), generator)

    assert rollout.text.endswith("</Final answer>")
    assert rollout.num_requests == 1
    assert all(rollout.model_written)
    assert not rollout.truncated


def test_a_free_rollout_without_an_end_is_truncated_at_the_limit() -> None:
    rollout = _sample(_plan(format="free", max_new_tokens=40), ScriptedGenerator(script=endless))

    assert rollout.truncated
    assert len(rollout.token_ids) == 40


def test_a_guided_line_without_an_end_is_closed_and_counted() -> None:
    generator = ScriptedGenerator(script=lambda c: "S" if c.kind == "choice" else endless(c))

    rollout = _sample(_plan(), generator)

    assert rollout.num_cut_lines > 0
    assert sum(rollout.model_written) <= 500
    assert rollout.truncated  # the probability itself never ended


@pytest.mark.parametrize("script", GARBAGE)
@pytest.mark.parametrize("format", ["guided", "free"])
def test_garbage_neither_crashes_nor_hangs(format: str, script: Script) -> None:
    generator = ScriptedGenerator(script=lambda c: "S" if c.kind == "choice" else script(c))

    rollout = _sample(_plan(format=format), generator)

    assert sum(rollout.model_written) <= 500
    assert len(generator.requests) < 20


def test_groups_come_in_the_order_of_the_prompts_whatever_the_latency() -> None:
    prompts = tuple(RolloutPrompt(patient_id=f"p{i}", token_ids=(65 + i,)) for i in range(5))
    batch = RolloutBatch(prompts=prompts, group_size=3, least=BASE_POLICY, seed=1, max_in_flight=4)
    generator = ScriptedGenerator(latency_s=0.003)
    sampler = RolloutSampler(generator, CharTokenizer(), _plan())

    groups = asyncio.run(sampler.sample_groups(batch))
    again = asyncio.run(
        RolloutSampler(ScriptedGenerator(), CharTokenizer(), _plan()).sample_groups(batch)
    )

    assert [[rollout.patient_id for rollout in group] for group in groups] == [
        [f"p{i}"] * 3 for i in range(5)
    ]
    assert groups == again
    assert generator.max_in_flight <= 4
    assert all(len({rollout.text for rollout in group}) > 1 for group in groups)


def test_batches_that_are_sampled_at_the_same_time_share_the_limit() -> None:
    generator = ScriptedGenerator(latency_s=0.003)
    sampler = RolloutSampler(generator, CharTokenizer(), _plan())
    batches = [
        RolloutBatch(
            prompts=(RolloutPrompt(patient_id=name, token_ids=(65,)),),
            group_size=3,
            least=BASE_POLICY,
            seed=1,
            max_in_flight=limit,
        )
        for name, limit in (("a", 4), ("b", 4), ("c", 2))
    ]

    async def sample_all() -> list[list[list[Rollout]]]:
        return await asyncio.gather(*map(sampler.sample_groups, batches))

    groups = asyncio.run(sample_all())

    assert [group[0][0].patient_id for group in groups] == ["a", "b", "c"]
    assert generator.max_in_flight == 4


def test_a_sync_inside_a_rollout_shows_in_its_policy_versions() -> None:
    class Moving(ScriptedGenerator):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            self.policy_version = PolicyVersion(lineage="grpo", version=len(self.requests))
            return await super().generate(request)

    rollout = _sample(_plan(), Moving())

    assert rollout.oldest_policy == PolicyVersion(lineage="grpo", version=0)
    assert rollout.newest_policy.version == rollout.num_requests - 1


def test_the_first_failed_rollout_is_raised_as_itself() -> None:
    batch = RolloutBatch(prompts=(PROMPT,), group_size=4, least=BASE_POLICY, seed=1)
    sampler = RolloutSampler(ScriptedGenerator(fail_at=3), CharTokenizer(), _plan())

    with pytest.raises(ConnectionError, match="the script ends here"):
        asyncio.run(sampler.sample_groups(batch))


@pytest.mark.parametrize(
    ("group_size", "cache_tokens", "expected"),
    [(1, 1000, 9), (4, 1000, 28), (1, 50, 1), (8, 50, 8), (1, 10**9, MAX_IN_FLIGHT)],
)
def test_no_more_rollouts_run_at_a_time_than_the_cache_holds(group_size, cache_tokens, expected):
    prompts = [RolloutPrompt(patient_id=f"p{n}", token_ids=(0,) * n) for n in (10, 90, 100)]

    assert rollouts_in_flight(prompts, group_size, 10, cache_tokens) == expected


class Teller:
    """Tells one and the same distribution, and remembers behind what."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        self.prompts.append("".join(map(chr, request.prompt_token_ids)))
        probabilities = [0.0] * 100
        probabilities[20], probabilities[60] = 0.75, 0.25
        return RiskReading(
            probabilities=tuple(probabilities), policy_version=request.least, num_requests=11
        )


@pytest.mark.parametrize(
    ("kind", "parse", "before"),
    [
        ("question_decomposition", parse_trajectory, "<Final answer>\n"),
        ("short_answer", parse_trajectory, "<Final answer>\n"),
        ("vanilla", parse_vanilla, "<Final answer>\n"),
        ("think_then_answer", parse_think, "<answer>\n"),
        ("think_then_answer_json", parse_think_json, '"answer": '),
    ],
)
def test_an_expected_risk_is_asked_for_where_the_number_would_stand(kind, parse, before) -> None:
    generator, teller = ScriptedGenerator(), Teller()
    sampler = RolloutSampler(
        generator, CharTokenizer(), _plan(kind=kind, reading="expected"), teller
    )

    rollout = asyncio.run(sampler.sample_rollout(PROMPT, least=BASE_POLICY, seed=3))

    assert [prompt.endswith(before) for prompt in teller.prompts] == [True]
    assert not any((each.sampling.regex or "").startswith(r"0\.") for each in generator.requests)
    assert parse(rollout.text).probability == 0.30
    assert rollout.risk is not None
    assert rollout.risk.mean == pytest.approx(0.3)
    assert rollout.num_requests == len(generator.requests) + 1
    assert not any(rollout.model_written[-len("0.30\n</") :])


@pytest.mark.parametrize(
    "plan", [_plan(reading="expected", format="free"), _plan(reading="expected")]
)
def test_an_expected_risk_needs_a_pattern_and_somebody_who_tells_it(plan: RolloutPlan) -> None:
    teller = Teller() if plan.format == "free" else None

    with pytest.raises(ValueError, match="expected risks need"):
        RolloutSampler(ScriptedGenerator(), CharTokenizer(), plan, teller)
