"""Maps between cohorts: which features are one, and every conversion worked out by hand."""

from itertools import permutations

import numpy as np
import pytest

from ehr.catalogue import (
    BENCHMARK_17,
    PHYSIONET2012,
    PHYSIONET2012_BENCHMARK,
    TJH_LABS,
    Feature,
    FeatureKind,
)
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.cohorts.schema_map import map_schema
from ehr.errors import DataError

SCHEMAS = {
    "synthetic": BENCHMARK_17,
    "physionet2012": PHYSIONET2012,
    "benchmark": PHYSIONET2012_BENCHMARK,
    "tjh": TJH_LABS,
}

# PhysioNet 2012, TJH, and one value of each that is the same measurement.
GOLDEN = [
    ("Albumin", 4.1, "albumin", 41.0),
    ("Alkaline phosphatase", 90.0, "Alkaline phosphatase", 90.0),
    ("Alanine aminotransferase", 30.0, "glutamic-pyruvic transaminase", 30.0),
    ("Aspartate aminotransferase", 31.0, "aspartate aminotransferase", 31.0),
    ("Bicarbonate", 24.0, "HCO3-", 24.0),
    ("Bilirubin", 1.0, "Total bilirubin", 17.104),
    ("Blood urea nitrogen", 14.0, "Urea", 4.9977),
    ("Cholesterol", 200.0, "Total cholesterol", 5.1727),
    ("Creatinine", 1.0, "creatinine", 88.402),
    ("Glucose", 100.0, "glucose", 5.5507),
    ("Hematocrit", 40.0, "hematocrit", 40.0),
    ("Platelets", 250.0, "Platelet count", 250.0),
    ("Potassium", 4.0, "Serum potassium", 4.0),
    ("Sodium", 140.0, "serum sodium", 140.0),
    ("Troponin I", 0.05, "Hypersensitive cardiac troponinI", 50.0),
    ("White blood cell count", 8.0, "White blood cell count", 8.0),
]


def case_of(features, values):
    names = [feature.name for feature in features]
    row = np.full((1, len(names)), np.nan)
    for name, value in values.items():
        row[0, names.index(name)] = value
    return PatientCase(
        patient_id="p1",
        sex=Sex.MALE,
        age=60.0,
        visit_labels=("12 h",),
        visit_days=(0.0,),
        values=row,
    )


def value_of(case, features, name):
    return case.values[0, [feature.name for feature in features].index(name)]


def test_the_pairs_of_tjh_and_physionet_are_these_in_both_directions():
    there = map_schema(TJH_LABS, PHYSIONET2012)
    back = map_schema(PHYSIONET2012, TJH_LABS)

    expected = {(physionet, tjh) for physionet, _, tjh, _ in GOLDEN}
    assert {(pair.other_feature, pair.feature) for pair in there.pairs} == expected
    assert {(pair.feature, pair.other_feature) for pair in back.pairs} == expected


@pytest.mark.parametrize(("physionet", "value", "tjh", "converted"), GOLDEN)
def test_a_value_converts_in_both_directions(physionet, value, tjh, converted):
    there = map_schema(TJH_LABS, PHYSIONET2012).case(case_of(PHYSIONET2012, {physionet: value}))
    back = map_schema(PHYSIONET2012, TJH_LABS).case(case_of(TJH_LABS, {tjh: converted}))

    assert value_of(there, TJH_LABS, tjh) == pytest.approx(converted, rel=1e-4)
    assert value_of(back, PHYSIONET2012, physionet) == pytest.approx(value, rel=1e-4)
    assert np.isfinite(there.values).sum() == np.isfinite(back.values).sum() == 1


def test_synthetic_and_physionet_share_the_benchmark_features_unconverted():
    there = map_schema(BENCHMARK_17, PHYSIONET2012)
    back = map_schema(PHYSIONET2012_BENCHMARK, BENCHMARK_17)

    names = [feature.name for feature in PHYSIONET2012_BENCHMARK]
    assert [pair.feature for pair in there.pairs] == names
    assert [pair.rule for pair in back.pairs if pair.unit == "mmHg"] == [
        "Diastolic blood pressure [mmHg] = Diastolic blood pressure [mmHg]",
        "Mean blood pressure [mmHg] = Mean blood pressure [mmHg]",
        "Systolic blood pressure [mmHg] = Systolic blood pressure [mmHg]",
    ]
    assert all(pair.feature == pair.other_feature for pair in (*there.pairs, *back.pairs))
    assert {pair.factor for pair in (*there.pairs, *back.pairs)} == {1.0}
    assert there.missing == (
        "Capillary refill rate",
        "Glasgow coma scale eye opening",
        "Glasgow coma scale motor response",
        "Glasgow coma scale verbal response",
    )


def test_synthetic_and_tjh_share_glucose_only():
    assert [pair.rule for pair in map_schema(BENCHMARK_17, TJH_LABS).pairs] == [
        "Glucose [mg/dL] = 18.016 x glucose [mmol/L]"
    ]


def test_the_ph_of_the_tongji_workbook_is_refused_with_the_reason():
    schema = map_schema(PHYSIONET2012, TJH_LABS)

    assert len(schema.refused) == 1
    assert schema.refused[0].startswith("pH, PH value: most values of the Tongji workbook")
    assert "pH" in schema.missing
    assert "PH value" in schema.unused


@pytest.mark.parametrize(("one", "two"), list(permutations(SCHEMAS, 2)))
def test_converted_reference_ranges_overlap_and_the_way_back_is_the_inverse(one, two):
    schema, back = map_schema(SCHEMAS[one], SCHEMAS[two]), map_schema(SCHEMAS[two], SCHEMAS[one])
    known = {feature.name: feature for feature in schema.features}
    others = {feature.name: feature for feature in schema.other_features}
    factors = {(pair.other_feature, pair.feature): pair.factor for pair in back.pairs}

    for pair in schema.pairs:
        reference = known[pair.feature].reference
        other = others[pair.other_feature].reference
        assert pair.factor * factors[pair.feature, pair.other_feature] == pytest.approx(1)
        assert (reference is None) == (other is None)
        if reference is not None and other is not None:
            assert reference[0] <= pair.factor * other[1]
            assert pair.factor * other[0] <= reference[1]


def test_visits_and_background_stay_and_the_id_cannot_meet_a_training_patient():
    case = case_of(TJH_LABS, {"creatinine": 88.402})

    mapped = map_schema(PHYSIONET2012, TJH_LABS).case(case)

    assert mapped.patient_id == "other cohort, p1"
    assert (mapped.sex, mapped.age, mapped.visit_days) == (case.sex, case.age, case.visit_days)
    assert mapped.values.shape == (1, len(PHYSIONET2012))


def test_a_value_outside_the_plausible_range_is_missing_as_the_reader_has_it():
    case = case_of(TJH_LABS, {"White blood cell count": 1726.0, "Serum potassium": 4.0})

    mapped = map_schema(PHYSIONET2012, TJH_LABS).case(case)

    assert np.isnan(value_of(mapped, PHYSIONET2012, "White blood cell count"))
    assert value_of(mapped, PHYSIONET2012, "Potassium") == 4.0


def test_a_case_of_another_cohort_than_the_maps_is_refused():
    with pytest.raises(DataError, match=r"must have 73 features .* Make the map"):
        map_schema(PHYSIONET2012, TJH_LABS).case(case_of(BENCHMARK_17, {"pH": 7.4}))


def test_units_without_a_conversion_are_refused():
    with pytest.raises(DataError, match="'Sodium' in 'mg/dL' must be converted"):
        map_schema([Feature(name="sodium", unit="mmol/L")], [Feature(name="Sodium", unit="mg/dL")])


def test_two_counterparts_of_one_feature_are_refused():
    others = [Feature(name="WBC"), Feature(name="leukocytes", aliases=("wbc",))]

    with pytest.raises(DataError, match=r"one counterpart of its own, got .'WBC', 'leukocytes'."):
        map_schema([Feature(name="wbc")], others)


def test_a_number_and_a_category_are_not_one_feature():
    category = Feature(name="Refill", kind=FeatureKind.CATEGORICAL, categories=((0.0, "no"),))

    assert map_schema([Feature(name="Refill")], [category]).pairs == ()
