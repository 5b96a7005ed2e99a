"""The SFT set: top k, unique, readable, then shorter."""

from dataclasses import replace
from typing import Any

import pytest

from actors.config import SearchSection
from actors.trajectories import COLUMNS, SearchedTrajectory, rank_trajectories, trajectories_table


def _row(text: str, reward: float, **changes: Any) -> SearchedTrajectory:
    row = SearchedTrajectory(
        patient_id="p",
        text=text,
        token_ids=tuple(map(ord, text)),
        prompt_token_ids=(1, 2),
        model_written=(True,) * len(text),
        value_kind="reward",
        reward=reward,
        reward_cls=reward,
        reward_att=0.0,
        readable=True,
        correct=True,
        probability=0.5,
        features=("pH",),
        num_steps=2,
        visit_count=1,
        path=text,
    )
    return replace(row, **changes)


def _kept(rows: list[SearchedTrajectory], **section: Any) -> list[str]:
    ranked = rank_trajectories(rows, SearchSection(**section))
    return [row.text for row in ranked if row.kept]


def test_the_best_k_are_kept_best_first() -> None:
    assert _kept([_row("a", 0.1), _row("b", 0.3), _row("c", 0.2)]) == ["b", "c"]


def test_equal_rewards_prefer_the_shorter() -> None:
    assert _kept([_row("long", 0.1), _row("s", 0.1)], num_kept_trajectories=1) == ["s"]


def test_equal_texts_count_once() -> None:
    rows = [_row("same", 0.3, path="0"), _row("same", 0.3, path="1"), _row("other", 0.1)]

    ranked = rank_trajectories(rows, SearchSection())

    assert [(row.text, row.path, row.rank) for row in ranked] == [
        ("same", "0", 1),
        ("other", "other", 2),
    ]


def test_unreadable_ones_are_never_kept_however_good() -> None:
    assert _kept([_row("bad", 0.9, readable=False), _row("a", -2.0)]) == ["a"]
    assert _kept([_row("bad", 0.9, readable=False)]) == []


@pytest.mark.parametrize(("only_correct", "kept"), [(True, ["b"]), (False, ["a", "b"])])
def test_only_correct_leaves_out_the_wrong_side(only_correct: bool, kept: list[str]) -> None:
    rows = [_row("a", 0.3, correct=False), _row("b", 0.1)]

    assert _kept(rows, only_correct=only_correct) == kept


def test_the_table_has_the_contracts_columns_and_null_for_an_unread_probability() -> None:
    table = trajectories_table([_row("a", 0.1, probability=None), _row("b", 0.2)])

    assert list(table.columns) == list(COLUMNS)
    assert table["probability"].isna().tolist() == [True, False]


def test_a_label_free_row_claims_nothing_about_the_label() -> None:
    rows = [_row("a", 0.1), _row("b", 0.2, value_kind="label_free", reward_cls=None, correct=None)]

    table = trajectories_table(rows)

    assert table["value_kind"].tolist() == ["reward", "label_free"]
    assert table["correct"].isna().tolist() == table["reward_cls"].isna().tolist() == [False, True]


def test_a_table_without_rows_keeps_its_columns() -> None:
    assert list(trajectories_table([]).columns) == list(COLUMNS)
