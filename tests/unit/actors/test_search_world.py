"""Algorithm 1 over its two protocols, in a world with a known best path."""

import asyncio
from itertools import product

import pytest

from actors.config import SearchSection
from actors.search import PatientSearch
from actors.search_result import PatientResult
from tests.scripted_world import PROMPTS, Maze, MazeJudge

SECTION = SearchSection(num_rollouts=8, num_candidates=3, max_depth=4, exploration_weight=0.5)


def _search(
    best: tuple[int, ...], section: SearchSection = SECTION
) -> tuple[PatientResult, Maze, MazeJudge]:
    model, judge = Maze(best), MazeJudge(best)
    result = asyncio.run(PatientSearch(PROMPTS, model, judge, section).run())
    return result, model, judge


@pytest.mark.parametrize("best", list(product(range(3), repeat=3)))
def test_the_best_of_27_paths_is_found_within_8_simulations(best: tuple[int, ...]) -> None:
    result, _, _ = _search(best)

    assert result.trajectories[0].path == "/".join(map(str, (*best, 0)))
    assert result.trajectories[0].reward == 1.0


def test_the_scores_alone_would_have_missed_it() -> None:
    result, _, _ = _search((0, 0, 0), SECTION.model_copy(update={"num_rollouts": 1}))

    assert [row.path for row in result.trajectories] == ["2/2/2/0"]
    assert result.trajectories[0].reward == 0.0


def test_each_terminal_is_valued_once_however_often_it_is_visited() -> None:
    result, model, judge = _search((1, 2, 0), SECTION.model_copy(update={"num_rollouts": 60}))

    assert len(judge.judged) == len(set(judge.judged)) == len(result.trajectories)
    assert sum(row.visit_count for row in result.trajectories) == 60
    assert max(row.visit_count for row in result.trajectories) > 1
    assert len(model.asked) == len(set(model.asked))


def test_a_simulation_scores_before_it_answers_and_answers_only_the_chosen() -> None:
    _, model, _ = _search((0, 0, 0), SECTION.model_copy(update={"num_rollouts": 1}))

    assert model.asked == [
        "question ()", "score (0,)", "score (1,)", "score (2,)", "answer (2,)",
        "question (2,)", "score (2, 0)", "score (2, 1)", "score (2, 2)", "answer (2, 2)",
        "question (2, 2)", "score (2, 2, 0)", "score (2, 2, 1)", "score (2, 2, 2)",
        "answer (2, 2, 2)", "final (2, 2, 2, 0)",
    ]  # fmt: skip


def test_eager_answers_come_at_the_expansion() -> None:
    section = SECTION.model_copy(update={"num_rollouts": 1, "max_depth": 2, "answers": "eager"})

    _, model, _ = _search((0,), section)

    assert model.asked == [
        "question ()", "score (0,)", "score (1,)", "score (2,)",
        "answer (0,)", "answer (1,)", "answer (2,)", "final (2, 0)",
    ]  # fmt: skip
