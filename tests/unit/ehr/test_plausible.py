import numpy as np
import pytest

from ehr.catalogue import TJH_LABS, Feature
from ehr.catalogue.plausible import plausible_mask, read_value, restore_decimal_point

FEATURES = (
    Feature(name="pulse", plausible=(10, 300)),
    Feature(name="note"),
    Feature(name="warmth", plausible=(25, 45)),
)


def test_values_outside_their_features_range_are_masked_and_counted_by_feature():
    values = np.array([9.9, 10.0, 300.0, 301.0, -17.8, 37.0])
    columns = np.array([0, 0, 0, 0, 2, 2])

    inside, counts = plausible_mask(values, columns, FEATURES)

    assert inside.tolist() == [False, True, True, False, False, True]
    assert counts == {"implausible pulse": 2, "implausible warmth": 1}


def test_a_feature_without_a_range_keeps_every_value():
    inside, counts = plausible_mask(np.array([-1e9, 1e9]), np.array([1, 1]), FEATURES)

    assert inside.all()
    assert counts == {}


def test_a_missing_value_is_not_plausible_and_not_counted():
    inside, counts = plausible_mask(np.array([np.nan]), np.array([0]), FEATURES)

    assert not inside.any()
    assert counts == {}


def test_no_values_give_no_counts():
    inside, counts = plausible_mask(np.array([]), np.array([], dtype=int), FEATURES)

    assert (inside.size, counts) == (0, {})


def test_lost_decimal_points_are_put_right_and_other_values_stay():
    written = np.array([7.35, 735.0, 73.5, 0.0, 100.0, np.nan])

    restored, count = restore_decimal_point(written, (6.5, 8.0))

    np.testing.assert_allclose(restored, [7.35, 7.35, 7.35, 0.0, 100.0, np.nan])
    assert count == 2


def test_the_given_values_are_not_changed():
    written = np.array([735.0])

    restore_decimal_point(written, (6.5, 8.0))

    assert written.tolist() == [735.0]


def test_a_range_in_which_two_shifts_fit_is_refused():
    with pytest.raises(AssertionError):
        restore_decimal_point(np.array([1.0]), (1.0, 10.0))


@pytest.mark.parametrize("feature", TJH_LABS[:3], ids=lambda feature: feature.name)
def test_a_negative_lab_of_the_workbook_is_missing_and_any_other_is_kept(feature: Feature):
    assert np.isnan(read_value(feature, -1).value)
    assert (read_value(feature, 0).value, read_value(feature, 1e5).value) == (0, 1e5)


def test_a_feature_of_another_cohort_without_a_range_may_be_negative():
    read = read_value(Feature(name="base excess"), -4)

    assert (read.value, read.reason) == (-4, None)


def test_the_reason_names_the_range_and_its_unit():
    reason = read_value(Feature(name="warmth", unit="C", plausible=(25, 45)), 98.6).reason

    assert reason == "outside the plausible range, 25 to 45 C: taken as not measured"
