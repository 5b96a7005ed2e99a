"""The served share of the trained change, by hand."""

import math

import pytest

from training.learner.served_change import served_change, worst

BEFORE = (-2.0, -3.0, -1.0, -4.0)
CHANGE = (0.5, -0.5, 1.0, 0.0)


def moved(share, offset=0.0):
    return tuple(b + share * c + offset for b, c in zip(BEFORE, CHANGE, strict=True))


def change_of(served, learner=None, served_before=BEFORE, least=0.0):
    return served_change(learner or moved(1), served, BEFORE, served_before, least)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 2.0, -1.0])
def test_the_share_is_what_the_served_change_is_of_the_trained_one(share):
    found = change_of(moved(share))

    assert found.share == pytest.approx(share)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.trained == pytest.approx(math.sqrt(1.5 / 4))
    assert found.difference == pytest.approx(abs(share - 1) * 0.5)


def test_tokens_that_move_apart_do_not_cancel():
    # sums of the changes are 0: a ratio of means would be 0/0
    learner = (-1.0, -4.0, -1.0, -4.0)
    served = (-1.6, -3.4, -1.0, -4.0)

    assert change_of(served, learner).share == pytest.approx(0.4)


def test_the_slope_and_its_error_are_those_of_least_squares_through_the_origin():
    # x = (.5, -.5, 1, 0), y = (.5, -.5, .7, .1): xy 1.2, xx 1.5, residuals (.1, -.1, -.1, .1)
    served = (-1.5, -3.5, -0.3, -3.9)

    found = change_of(served)

    assert found.share == pytest.approx(0.8)
    assert found.standard_error == pytest.approx(math.sqrt(0.04 / 3 / 1.5))


def test_the_generators_own_start_is_what_its_change_is_counted_from():
    shifted = tuple(value + 0.05 for value in BEFORE)

    assert change_of(moved(1, 0.05), served_before=shifted).share == pytest.approx(1)


def test_a_change_below_four_times_the_noise_at_the_start_has_no_share():
    noisy = tuple(b + n for b, n in zip(BEFORE, (0.16, -0.16, 0.16, -0.16), strict=True))
    quieter = tuple(b + n for b, n in zip(BEFORE, (0.15, -0.15, 0.15, -0.15), strict=True))

    assert change_of(moved(1), served_before=noisy).share is None  # .612 < 4 x .16
    assert change_of(moved(1), served_before=quieter).share is not None  # .612 > 4 x .15


def test_no_change_has_no_share_and_is_never_off():
    found = change_of(BEFORE, learner=BEFORE)

    assert found.share is None
    assert not found.is_off(0.1)
    assert found.metrics() == {"sync/trained_change": 0.0, "sync/change_mean_abs": 0.0}


def test_who_has_not_measured_the_noise_says_from_where_on_a_share_counts():
    assert change_of(moved(1), served_before=None, least=0.7).share is None
    assert change_of(moved(1), served_before=None, least=0.6).share == pytest.approx(1)


@pytest.mark.parametrize(
    ("share", "is_off"), [(1.0, False), (0.71, False), (0.69, True), (1.29, False), (1.31, True)]
)
def test_a_share_is_off_on_both_sides(share, is_off):
    assert change_of(moved(share)).is_off(0.3) is is_off


def test_scatter_of_the_tokens_alone_is_not_taken_for_a_lost_update():
    served = (-1.5, -3.5, -0.3, -3.9)  # .8 with an error of .094

    assert not change_of(served).is_off(0.1)
    assert change_of(served).is_off(0.01)


def test_a_share_that_is_no_number_is_off():
    assert change_of((math.nan, *moved(1)[1:])).is_off(0.3)


def test_of_several_replicas_the_one_that_serves_something_else_counts():
    found = worst([change_of(moved(1)), change_of(moved(0)), change_of(moved(0.99))])

    assert found.share == pytest.approx(0)
