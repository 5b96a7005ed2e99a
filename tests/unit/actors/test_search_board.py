"""What a person is told of a search never goes back, whatever reaches the driver when."""

from pathlib import Path

import pytest

from actors.config import SearchSection
from actors.search_actor import ActorProgress, SearchSetup
from actors.search_board import SearchBoard
from actors.search_folder import PatientSummary, SearchFolder
from actors.search_totals import SearchProgress
from ehr.config import RewardSection
from ehr.errors import SearchError
from services.types import BASE_POLICY
from tests.scripted import CONTEXT, FRAME, CharTokenizer, ScriptedGenerator, fixed_salience
from tests.unit.actors.test_search_totals import summary

SETUP = SearchSetup(
    search=SearchSection(num_rollouts=4, max_invalid_scores=0.5),
    prompt=CONTEXT.section,
    reward=RewardSection(),
    max_model_len=4096,
    frame=FRAME,
    least=BASE_POLICY,
    make_generator=ScriptedGenerator,
    make_tokenizer=CharTokenizer,
    make_ask_salience=fixed_salience,
)


def board(folder: Path) -> tuple[SearchBoard, list[SearchProgress]]:
    told: list[SearchProgress] = []
    return SearchBoard(["a", "b", "c"], SearchFolder(folder), SETUP, told.append), told


def saying(*trees: PatientSummary, num_held: int = 0) -> list[ActorProgress]:
    return [ActorProgress(trees=trees, num_held=num_held, new_rollouts=0, new_decode_tokens=0)]


def test_a_patient_is_counted_once_whether_it_grows_or_is_finished(tmp_path: Path) -> None:
    searching, told = board(tmp_path)

    searching.tell(saying(summary("a", rollouts=3), summary("b", rollouts=1)), {"a", "b"}, 1)
    searching.add(summary("a"))
    searching.tell(saying(summary("a", rollouts=3), summary("b", rollouts=1)), {"b"}, 1)

    assert [(each.num_finished, each.num_rollouts) for each in told] == [(0, 0), (0, 4), (1, 5)]
    assert told[-1].num_trees == 1


def test_nothing_goes_back_when_an_answer_is_late_or_a_tree_is_replayed(tmp_path: Path) -> None:
    searching, told = board(tmp_path)

    searching.tell(saying(summary("a", rollouts=3)), {"a"}, 1)
    # It has ended, and what its actor said of it has not come yet.
    searching.tell(saying(), {"a"}, 1)
    # Its actor died: it waits, and then another one replays its log.
    searching.tell([], (), 0)
    searching.tell(saying(summary("a", rollouts=1)), {"a"}, 1)

    assert [each.num_rollouts for each in told] == [0, 3, 3, 3, 3]
    assert [each.num_trees for each in told] == [0, 1, 0, 0, 1]


def test_what_waits_for_the_cache_is_told(tmp_path: Path) -> None:
    searching, told = board(tmp_path)

    searching.tell(saying(summary("a"), num_held=2), {"a", "b", "c"}, 1)

    assert (told[-1].num_trees, told[-1].num_held) == (1, 2)


def test_too_many_unreadable_scores_end_the_search(tmp_path: Path) -> None:
    searching, _ = board(tmp_path)
    unreadable = {"scores": 18, "invalid_scores": 10}

    searching.add(summary("a", search=unreadable))  # of too few scores to say so

    with pytest.raises(SearchError, match="got 20 of 36"):
        searching.add(summary("b", search=unreadable))
