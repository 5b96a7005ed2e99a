import pytest

from ehr.catalogue import (
    AGE_AND_SEX,
    BENCHMARK_17,
    KNOWN_FEATURES,
    PHYSIONET2012,
    TJH_LABS,
    Feature,
    FeatureKind,
)
from ehr.catalogue.names import FeatureMatcher

CATEGORICAL = [feature for feature in BENCHMARK_17 if feature.kind is FeatureKind.CATEGORICAL]


def test_benchmark_features_stand_in_the_order_of_the_benchmark():
    names = [feature.name for feature in BENCHMARK_17]

    assert names == [
        "Capillary refill rate",
        "Glasgow coma scale eye opening",
        "Glasgow coma scale motor response",
        "Glasgow coma scale total",
        "Glasgow coma scale verbal response",
        "Diastolic blood pressure",
        "Fraction inspired oxygen",
        "Glucose",
        "Heart Rate",
        "Height",
        "Mean blood pressure",
        "Oxygen saturation",
        "Respiratory rate",
        "Systolic blood pressure",
        "Temperature",
        "Weight",
        "pH",
    ]


def test_tjh_has_73_labs_without_the_constant_one_and_without_blanks_at_the_ends():
    names = [feature.name for feature in TJH_LABS]

    assert len(set(names)) == 73
    assert "2019-nCoV nucleic acid detection" not in names
    assert [name.strip() for name in names] == names


def test_the_demographic_feature_is_in_no_visit_row():
    names = {feature.name for feature in KNOWN_FEATURES}

    assert AGE_AND_SEX not in names


@pytest.mark.parametrize("feature", CATEGORICAL, ids=lambda feature: feature.name)
def test_categories_ascend_by_one(feature: Feature):
    codes = [code for code, _ in feature.categories]

    assert codes == [codes[0] + step for step in range(len(codes))]


def test_coma_scale_words_have_their_codes():
    motor = next(feature for feature in BENCHMARK_17 if "motor" in feature.name)

    assert motor.categories == (
        (1.0, "No Response"),
        (2.0, "Abnormal Extension"),
        (3.0, "Abnormal Flexion"),
        (4.0, "Flex-withdraws"),
        (5.0, "Localizes Pain"),
        (6.0, "Obeys Commands"),
    )


def test_physionet2012_has_the_13_benchmark_features_it_records_before_its_22_others():
    benchmark = set(BENCHMARK_17) & set(PHYSIONET2012)

    assert set(PHYSIONET2012[:13]) == benchmark
    assert len(benchmark) == 13
    assert len({feature.name for feature in PHYSIONET2012}) == 35


def test_features_of_one_name_have_one_unit_and_kind_in_every_source():
    first = {feature.name: feature for feature in reversed(KNOWN_FEATURES)}

    unlike = [
        feature.name
        for feature in KNOWN_FEATURES
        if (feature.unit, feature.kind) != (first[feature.name].unit, first[feature.name].kind)
    ]

    assert unlike == []


@pytest.mark.parametrize("feature", KNOWN_FEATURES, ids=lambda feature: feature.name)
def test_ranges_ascend_and_reference_ranges_are_plausible(feature: Feature):
    low, high = feature.reference or (0.0, 0.0)
    least, most = feature.plausible or (low, high)

    assert least <= low <= high <= most or feature.reference is None
    assert least <= most


@pytest.mark.parametrize(
    "features",
    [BENCHMARK_17, TJH_LABS, PHYSIONET2012],
    ids=["benchmark", "tjh", "physionet2012"],
)
def test_every_alias_means_one_feature_and_every_name_itself(features: tuple[Feature, ...]):
    matcher = FeatureMatcher(features)

    matched = {
        spelling: matcher.match(spelling)
        for feature in features
        for spelling in (feature.name, *feature.aliases)
    }

    assert matched == {
        spelling: feature.name
        for feature in features
        for spelling in (feature.name, *feature.aliases)
    }
