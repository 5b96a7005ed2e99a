"""The teacher without a tree, with a scripted model."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from actors.case_prompts import PromptKind, case_prompt
from actors.config import SearchSection
from actors.request_log import RequestLog
from actors.sampled_answers import SampledAnswers, samples_tokens, sampling_plan
from actors.search_result import PatientResult
from ehr.language.prompts import PromptContext
from services.types import BASE_POLICY, Completion, GenerateRequest
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

SECTION = SearchSection(
    method="samples",
    num_rollouts=6,
    num_kept_trajectories=2,
    max_depth=3,
    question_tokens=120,
    answer_tokens=160,
    final_tokens=300,
)
KINDS = ("short_answer", "question_decomposition")


def sample(
    folder: Path,
    generator: ScriptedGenerator,
    kind: PromptKind = "short_answer",
    layout: str = "guided",
    label: int = 1,
    salient: frozenset[str] | None = None,
) -> PatientResult:
    plan = SearchPlan(section=SECTION, label=label)
    if salient is not None:
        plan = SearchPlan(section=SECTION, label=label, salient=salient)
    prompt = case_prompt(case_of(), kind, CONTEXT, CharTokenizer(), FRAME)
    with RequestLog(folder / "p1.jsonl", generator) as log:
        answers = SampledAnswers(
            prompt,
            log,
            CharTokenizer(),
            judge_of(plan),
            SECTION,
            sampling_plan(SECTION, asked(kind, layout)),
            BASE_POLICY,
        )
        return asyncio.run(answers.run())


def asked(kind: str, layout: str = "guided", **settings: str) -> PromptContext:
    """What prompts of a kind and format are made of."""
    changes = {"kind": kind, "format": layout, **settings}
    return replace(CONTEXT, section=CONTEXT.section.model_copy(update=changes))


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_unique_answers_are_kept(kind: PromptKind, tmp_path: Path) -> None:
    result = sample(tmp_path, ScriptedGenerator(), kind)

    rewards = [row.reward for row in result.trajectories]
    assert rewards == sorted(rewards, reverse=True)
    assert [row.kept for row in result.trajectories] == [True, True, *[False] * (len(rewards) - 2)]
    assert len({row.text for row in result.trajectories}) == len(rewards)
    assert {row.path for row in result.trajectories} <= set("012345")
    assert result.root_value == pytest.approx(sum(rewards) / 6) or len(rewards) < 6
    for row in result.trajectories:
        assert len(row.token_ids) == len(row.model_written)
        assert "".join(map(chr, row.token_ids)) == row.text
        assert (row.num_steps == 1) == (kind == "short_answer")


def test_the_record_is_a_tree_of_one_level(tmp_path: Path) -> None:
    nodes = sample(tmp_path, ScriptedGenerator()).nodes

    assert len(nodes) == 1 + SECTION.num_rollouts
    assert {node.parent for node in nodes[1:]} == {0}
    assert all(node.terminal and node.visit_count == 1 for node in nodes[1:])
    assert nodes[0].visit_count == SECTION.num_rollouts


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_log_gives_the_same_answers_and_asks_nothing(
    kind: PromptKind, tmp_path: Path
) -> None:
    first = sample(tmp_path, ScriptedGenerator(latency_s=0.002), kind)
    silent = ScriptedGenerator(fail_at=0)

    assert sample(tmp_path, silent, kind).trajectories == first.trajectories
    assert silent.requests == []


def test_what_was_logged_before_a_fault_is_not_asked_again(tmp_path: Path) -> None:
    whole = ScriptedGenerator()
    expected = sample(tmp_path / "whole", whole)
    with pytest.raises(ConnectionError):
        sample(tmp_path / "stopped", ScriptedGenerator(fail_at=5))
    rest = ScriptedGenerator()

    assert sample(tmp_path / "stopped", rest).trajectories == expected.trajectories
    assert len(rest.requests) == len(whole.requests) - 5


class InOrder(ScriptedGenerator):
    """Answers are finished in a given order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self._order = order
        self._num_asked = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        place = self._num_asked
        self._num_asked += 1
        if place < len(self._order):  # its first part; the rest follows at once
            await asyncio.sleep(0.02 * self._order.index(place))
        return await super().generate(request)


def test_neither_latency_nor_order_changes_an_answer(tmp_path: Path) -> None:
    quick = sample(tmp_path / "quick", ScriptedGenerator())
    slow = sample(tmp_path / "slow", ScriptedGenerator(latency_s=0.01))

    assert quick == slow
    # An order in which these rewards add up to another last bit.
    assert quick == sample(tmp_path / "turned", InOrder((4, 5, 1, 2, 0, 3)))


def test_label_and_salient_features_reach_no_request(tmp_path: Path) -> None:
    asked = []
    for number, (label, salient) in enumerate(((0, {"Glucose"}), (1, {"pH"}))):
        generator = ScriptedGenerator()
        sample(tmp_path / str(number), generator, label=label, salient=frozenset(salient))
        asked.append(generator.requests)

    assert asked[0] == asked[1]


def test_an_unreadable_answer_is_counted_and_never_kept(tmp_path: Path) -> None:
    def garbage(call: Call) -> str:
        return "no number at all" if call.kind == "probability" else sensible(call)

    result = sample(tmp_path, ScriptedGenerator(script=garbage))

    assert result.counts.unreadable_finals == SECTION.num_rollouts
    assert not any(row.kept or row.readable for row in result.trajectories)


def test_a_free_answer_that_is_cut_off_is_unreadable(tmp_path: Path) -> None:
    def endless(call: Call) -> str:
        return "<Final answer>\n0.50\n</Final answer" + "x" * 5000

    result = sample(tmp_path, ScriptedGenerator(script=endless), layout="free")

    assert result.counts.unreadable_finals == SECTION.num_rollouts


def test_listed_names_are_those_of_the_record() -> None:
    section = asked("short_answer", feature_names="listed")

    assert sampling_plan(SECTION, asked("short_answer")).feature_names == ()
    assert sampling_plan(SECTION, section).feature_names == (
        *(feature.name for feature in CONTEXT.features),
        "Age",
    )


def test_an_answer_may_be_as_long_as_what_a_search_may_write() -> None:
    short, whole = (sampling_plan(SECTION, asked(kind)) for kind in KINDS)
    prompt = case_prompt(case_of(), "short_answer", CONTEXT, CharTokenizer(), FRAME)

    assert short.max_new_tokens < whole.max_new_tokens
    assert whole.max_new_tokens >= 2 * (120 + 160) + 300
    assert samples_tokens(prompt, short, SECTION) == (
        len(prompt.token_ids) + 6 * short.max_new_tokens
    )
