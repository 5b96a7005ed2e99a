"""Other orders of a prompt's features: how many move, exactly, and where to."""

import pytest

from ehr.errors import DataError
from ehr.language.feature_order import FeatureOrder

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@pytest.mark.parametrize("num_features", range(2, 74))
def test_exactly_the_share_of_features_stands_elsewhere(num_features: int) -> None:
    for share in SHARES:
        order = FeatureOrder(share=share, seed=3)
        for patient in ("a", "b", "c"):
            columns = order.of(patient, num_features)

            moved = sum(place != column for place, column in enumerate(columns))
            rounded = round(share * num_features)
            # One alone cannot move: two exchange their places.
            assert moved == order.num_moved(num_features) == (2 if rounded == 1 else rounded)
            assert sorted(columns) == list(range(num_features))


def test_the_order_depends_on_seed_and_patient_alone() -> None:
    order = FeatureOrder(share=0.5, seed=3)
    orders = [
        order.of("a", 17),
        order.of("b", 17),
        FeatureOrder(share=0.5, seed=4).of("a", 17),
    ]

    assert order.of("a", 17) == FeatureOrder(share=0.5, seed=3).of("a", 17)
    assert len({tuple(each) for each in orders}) == 3
    # Pinned: the same on every machine and in every release.
    assert FeatureOrder(share=0.5, seed=0).of("patient 1", 8) == [3, 5, 2, 1, 4, 0, 6, 7]


def test_every_feature_moves_as_often_and_everywhere() -> None:
    order = FeatureOrder(share=0.5, seed=0)
    found = [order.of(f"p{number}", 4) for number in range(1200)]

    for column in range(4):
        elsewhere = [each.index(column) for each in found if each[column] != column]
        assert len(elsewhere) == pytest.approx(600, abs=70)
        for place in {0, 1, 2, 3} - {column}:
            assert elsewhere.count(place) == pytest.approx(200, abs=50)


@pytest.mark.parametrize("num_features", [0, 1])
def test_where_there_is_no_other_place_nothing_moves(num_features: int) -> None:
    assert FeatureOrder(share=1.0, seed=0).of("a", num_features) == list(range(num_features))


@pytest.mark.parametrize("share", [-0.1, 1.5, 25, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        FeatureOrder(share=share, seed=0)
