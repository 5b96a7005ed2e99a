import pytest

from ehr.catalogue import BENCHMARK_17, PHYSIONET2012, TJH_LABS, Feature
from ehr.catalogue.name_lists import split_names
from ehr.catalogue.names import FeatureMatcher
from ehr.errors import DataError

BENCHMARK = FeatureMatcher(BENCHMARK_17)
TJH = FeatureMatcher(TJH_LABS)
ICU = FeatureMatcher(PHYSIONET2012)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right)


def test_case_study_of_table_4_has_its_overlaps():
    expert = BENCHMARK.canonical_set(
        ["Age & Sex", "pH", "Glucose", "Height", "Systolic blood pressure"]
    )
    baseline = BENCHMARK.canonical_set(
        split_names(
            "Glucose, Diastolic blood pressure, Fraction inspired oxygen, Respiratory rate, pH"
        )
    )
    trained = BENCHMARK.canonical_set(
        split_names("Glucose, Diastolic blood pressure, pH, Age, Sex")
    )

    assert jaccard(baseline, expert) == 2 / 8
    assert jaccard(trained, expert) == 3 / 6


@pytest.mark.parametrize("name", ["Age", "SEX", "gender", "Age & Sex", "age and sex", "Age 85"])
def test_demographics_are_one_feature_in_every_cohort(name: str):
    assert BENCHMARK.match(name) == "Age & Sex"
    assert TJH.match(name) == "Age & Sex"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Direct bilirubin", "Direct bilirubin"),
        ("indirect bilirubin high", "indirect bilirubin"),
        ("Bilirubin (total)", "Total bilirubin"),
        ("unconjugated bilirubin", "indirect bilirubin"),
        ("thrombin time 17 s", "Thrombin time"),
        ("Prothrombin time (PT)", "Prothrombin time"),
        ("Prothrombin activity", "Prothrombin activity"),
        ("antithrombin", "antithrombin"),
        ("calcium", "calcium"),
        ("corrected calcium 2.3 mmol/L", "Corrected calcium"),
        ("serum calcium (corrected)", "Corrected calcium"),
        ("hemoglobin", "hemoglobin"),
        ("low haemoglobin", "hemoglobin"),
        ("mean corpuscular hemoglobin ", "mean corpuscular hemoglobin"),
        (
            "mean corpuscular hemoglobin concentration (low)",
            "mean corpuscular hemoglobin concentration",
        ),
        (
            "mean corpuscular hemoglobin (concentration)",
            "mean corpuscular hemoglobin concentration",
        ),
        ("Interleukin 6", "Interleukin 6"),
        ("IL-8", "Interleukin 8"),
        ("interleukin-10: 12.3 pg/mL", "Interleukin 10"),
        ("Interleukin 6 10", "Interleukin 6"),
        ("eosinophils (%)", "eosinophils(%)"),
        ("eosinophil count", "Eosinophil count"),
        ("lymphocytes 11%", "(%)lymphocyte"),
        ("low lymphocyte count", "lymphocyte count"),
        ("neutrophil percentage high", "neutrophils(%)"),
        ("neutrophils count 12.1", "neutrophils count"),
        ("High-sensitivity C-reactive protein", "High sensitivity C-reactive protein"),
        ("hs-CRP", "High sensitivity C-reactive protein"),
        ("pH", "PH value"),
        ("lymphocyte count", "lymphocyte count"),
        ("alkaline phosphatase", "Alkaline phosphatase"),
        ("LDH = 800", "Lactate dehydrogenase"),
        ("\u03b3-glutamyl transpeptidase", "\u03b3-glutamyl transpeptidase"),
        ("TNF-\u03b1", "Tumor necrosis factor\u03b1"),
        ("Red blood cell distribution width ", "Red blood cell distribution width"),
        ("RDW-SD", "RBC distribution width SD"),
    ],
)
def test_traps_of_the_labs_find_their_feature(written: str, name: str):
    assert TJH.match(written) == name


@pytest.mark.parametrize(
    "written",
    [
        "bilirubin",
        "lymphocytes",
        "interleukin",
        "Interleukin 60",
        "prothrombin",
        "phosphatase",
        "sepsis",
        "",
        "(%)",
    ],
)
def test_words_that_name_no_feature_or_several_name_none(written: str):
    assert TJH.match(written) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("FiO2 100%", "Fraction inspired oxygen"),
        ("low MAP", "Mean blood pressure"),
        ("GCS 15", "Glasgow coma scale total"),
        ("Glasgow coma scale (GCS)", "Glasgow coma scale total"),
        ("Glasgow coma scale verbal response: Oriented", "Glasgow coma scale verbal response"),
        ("Systolic BP of 90 mmHg", "Systolic blood pressure"),
        ("Acidosis (pH 7.1)", "pH"),
        ("[Glucose", "Glucose"),
        ("Temperature (C) high", "Temperature"),
        ("corrected calcium and pH", "pH"),
    ],
)
def test_values_units_brackets_and_qualifiers_leave(written: str, name: str):
    assert BENCHMARK.match(written) == name


@pytest.mark.parametrize("written", ["blood pressure", "lymphocyte", "alkaline phosphatase"])
def test_parts_of_words_and_of_names_do_not_match(written: str):
    assert BENCHMARK.match(written) is None


def test_a_longer_name_of_another_cohort_guards_its_parts():
    matcher = FeatureMatcher([Feature(name="hemoglobin")])

    assert matcher.match("severe loss of hemoglobin") == "hemoglobin"
    assert matcher.match("severe loss of mean corpuscular hemoglobin") is None


def test_unknown_names_enlarge_the_set_and_duplicates_do_not():
    names = BENCHMARK.canonical_set(["pH", "PH ", "Septic  Shock", "septic shock", "SOFA=11", " "])

    assert names == {"pH", "septic shock", "sofa=11"}


def test_names_are_split_at_commas_semicolons_and_line_ends_only():
    assert split_names("pH, Age & Sex; Heart rate and glucose\nWeight") == [
        "pH",
        "Age & Sex",
        "Heart rate and glucose",
        "Weight",
    ]


def test_list_marks_quotes_and_parts_without_letters_leave():
    assert split_names('1. pH\n- "Glucose"\n\n, 178.0],\n2) **Weight**.') == [
        "pH",
        "Glucose",
        "Weight",
    ]


def test_features_that_share_a_spelling_are_refused():
    features = [Feature(name="calcium"), Feature(name="Corrected calcium", aliases=("Calcium",))]

    with pytest.raises(DataError, match="'calcium' and 'Corrected calcium' share"):
        FeatureMatcher(features)


@pytest.mark.parametrize(
    "written", ["pt with fever", "history of HT", "urine pH", "BUN/creatinine ratio", "troponinT"]
)
def test_words_beside_a_name_can_make_it_another_thing(written: str):
    assert BENCHMARK.match(written) is None
    assert TJH.match(written) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("PaO2 (mmHg)", "Partial pressure of oxygen"),
        ("low PaO2: 60 mmHg", "Partial pressure of oxygen"),
        ("Arterial oxygen saturation", "Oxygen saturation"),
        ("PaCO2", "Partial pressure of carbon dioxide"),
        ("Serum lactate 4.1 mmol/L", "Lactate"),
        ("BUN", "Blood urea nitrogen"),
        ("elevated total bilirubin", "Bilirubin"),
        ("Troponin-T", "Troponin T"),
        ("WBC count", "White blood cell count"),
        ("GCS", "Glasgow coma scale total"),
        ("MAP", "Mean blood pressure"),
        ("reduced urine output", "Urine output"),
        ("mechanical ventilation (yes)", "Mechanical ventilation"),
        ("troponin", None),
        ("lactate dehydrogenase", None),
        ("NA", None),
    ],
)
def test_names_of_an_icu_record_are_found(written: str, name: str | None):
    assert ICU.match(written) == name


def test_troponin_t_is_not_the_workbooks_troponin():
    assert TJH.match("troponin") == "Hypersensitive cardiac troponinI"
    assert TJH.match("troponin T") is None


@pytest.mark.parametrize(
    "written",
    [
        *("not pH", "no pH", "without pH", "absence of pH", "lack of pH", "never pH", "isn't pH"),
        *("neither pH nor heart rate", "not pH or heart rate", "no abnormal pH", "non-pH"),
        *("anything except pH", "other than pH", "pH not important", "pH is irrelevant"),
        *("pH (not relevant)", "pH (excluded)", "not relevant (pH)", "pH was not considered"),
        # All but it.
        *("all but pH", "anything but pH", "everything but pH", "all other vital signs but pH"),
        *("aside from pH", "regardless of pH", "with the exception of pH", "in place of pH"),
        *("all but pH and heart rate", "ignoring the pH", "omitted: pH", "left out: pH"),
        # Taken back behind it.
        *("pH was omitted", "pH was ignored", "pH ruled out", "pH was left out", "pH is useless"),
        *("pH doesn\u2019t matter", "pH doesn't matter", "pH didn\u2019t contribute"),
        *("pH has no influence", "pH is of no importance", "pH plays no role", "pH not a factor"),
        *("pH of little relevance", "pH of little clinical relevance", "pH hardly matters"),
        *("low importance: pH", "pH isn\u2019t", "pH: no", "pH - no", "pH (no)", "pH \u2717"),
        *("pH, no", "pH, irrelevant", "pH, not relevant", "pH, of little importance"),
        # By a sign.
        *("\u00acpH", "\u00ac pH", "!pH", "~pH", "~~pH~~", "!=pH", "\u2260 pH", "\u274c pH"),
    ],
)
def test_what_is_denied_is_an_unknown_member_and_names_no_feature(written: str):
    assert BENCHMARK.match(written) is None
    assert BENCHMARK.canonical_set([written]) == {written.casefold()}


@pytest.mark.parametrize(
    "written",
    [
        *("normal pH", "missing pH", "pH not elevated", "pH not measured", "pH: no change"),
        *("pH but not heart rate", "pH rather than heart rate", "pH without heart rate"),
        *("not only pH", "pH is not only low", "not heart rate but pH", "pH instead of heart rate"),
        *("nothing but pH", "all normal but pH", "pH aside from heart rate", "little change in pH"),
        *("pH cannot be ignored", "pH is not unimportant", "pH no longer low", "pH out of range"),
        *("heart rate ignored and pH", "heart rate: no | pH: yes", "pH of great importance"),
        *("pH ~7.1", "~7.1 pH", "~normal pH", "pH ~ 7.1", "pH!", "Important! pH", "pH \u2260 7.4"),
    ],
)
def test_what_a_negation_does_not_reach_is_named(written: str):
    assert BENCHMARK.canonical_set([written]) == {"pH"}


@pytest.mark.parametrize(
    "written",
    [
        *("pH and Heart Rate", "pH & HR", "pH + Heart Rate", "pH or Heart Rate", "HR and/or pH"),
        *("both pH and heart rate", "not only pH but also heart rate", "low pH and high HR (120)"),
        *("pH as well as heart rate", "pH 7.1 and heart rate 120 bpm", "pH and pH and heart rate"),
        *("pH with Heart Rate", "pH then Heart Rate", "pH followed by Heart Rate", "HR with pH"),
        *("pH in addition to Heart Rate", "pH besides Heart Rate", "pH also Heart Rate"),
        *("pH | Heart Rate", "| pH | Heart Rate |", "pH | 7.1 | Heart Rate | 120", "pH \u2022 HR"),
        *("acidosis with low pH and high HR", "fever in addition to pH and HR"),
        *("Heart Rate with no fever and low pH", "sepsis | pH and HR"),
    ],
)
def test_names_joined_by_and_are_both_read(written: str):
    assert BENCHMARK.canonical_set([written]) == {"pH", "Heart Rate"}
    assert BENCHMARK.match(written) is None


ENZYMES = {
    "aspartate aminotransferase",
    "glutamic-pyruvic transaminase",
    "Lactate dehydrogenase",
}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("direct and indirect bilirubin", {"Direct bilirubin", "indirect bilirubin"}),
        ("lymphocyte and neutrophil counts", {"lymphocyte count", "neutrophils count"}),
        ("AST, ALT and LDH", ENZYMES),
        ("AST and ALT and LDH", ENZYMES),
        ("CRP high but ferritin low", {"High sensitivity C-reactive protein", "ferritin"}),
        ("Age and sex and calcium", {"Age & Sex", "calcium"}),
        # A known name of another cohort is a member of its own; of other words the name is taken.
        ("heart rate and calcium", {"heart rate", "calcium"}),
        ("sepsis and calcium", {"calcium"}),
        ("calcium and urine protein", {"calcium and urine protein"}),
        ("fibrin/fibrinogen degradation products", {"Fibrin degradation products"}),
    ],
)
def test_joined_names_of_a_workbook(written: str, names: set[str]):
    assert TJH.canonical_set(split_names(written)) == names


@pytest.mark.parametrize(
    "written",
    [
        *("PaO2/FiO2", "PaO2 to FiO2", "PaO2:FiO2", "PaO2 / FiO2", "AST > ALT", "AST vs ALT"),
        *("BUN-creatinine", "sodium potassium", "pH -> lactate", "PaO2 over FiO2"),
    ],
)
def test_two_names_with_a_mark_or_a_relation_between_them_name_neither(written: str):
    assert ICU.canonical_set([written]) == {written.casefold()}


@pytest.mark.parametrize(
    "written",
    [
        *("urine protein", "urine culture", "protein in urine", "blood in urine", "urine sodium"),
        *("minute ventilation", "non-invasive ventilation", "ventilator-associated pneumonia"),
        *("D-lactate", "lactase", "lactated Ringer's", "venous PaO2", "arterial oxygen content"),
    ],
)
def test_a_name_beside_a_word_that_changes_it_is_unknown(written: str):
    assert ICU.match(written) is None


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("pH, also Heart Rate", {"pH", "Heart Rate"}),
        ("pH, then Heart Rate", {"pH", "Heart Rate"}),
        ("also Heart Rate", {"Heart Rate"}),
        ("not and pH", {"not and ph"}),
        ("pH with Heart Rate and Glucose", {"pH", "Heart Rate", "Glucose"}),
        ("pH with acidosis", {"pH"}),
        ("pH low then high", {"pH"}),
        ("pH | 7.1", {"pH"}),
        # Height, or hypertension.
        ("HT with pH 7.1", {"pH"}),
        ("not pH with Heart Rate", {"not ph with heart rate"}),
        ("anything besides pH", {"anything besides ph"}),
        ("besides pH", {"besides ph"}),
        ("pH / Heart Rate", {"ph / heart rate"}),
    ],
)
def test_words_that_join_names_or_begin_a_clause(written: str, names: set[str]):
    assert BENCHMARK.canonical_set(split_names(written)) == names


@pytest.mark.parametrize("written", ["pt with low pH", "Pt with pH 7.1"])
def test_a_patient_with_something_is_no_prothrombin_time(written: str):
    assert TJH.canonical_set([written]) == {"PH value"}


@pytest.mark.parametrize(
    "written",
    [
        *(
            "Mechanical ventilation: no",
            "mechanical ventilation (no)",
            "Mechanical ventilation, no",
        ),
        *("mechanical ventilation (yes)", "Mechanical ventilation = no"),
    ],
)
def test_no_is_a_value_of_what_is_or_is_not(written: str):
    assert ICU.canonical_set(split_names(written)) == {"Mechanical ventilation"}


@pytest.mark.parametrize(
    "written",
    [
        *("pre\u2010albumin", "pre\u2011albumin", "pre\u2013albumin", "pre\u2212albumin"),
        *("pre - albumin", "pre \u2013 albumin", "pre\u2014albumin", "pre(-)albumin"),
        *("(pre)albumin", "(micro)albumin", "albumin (pre-)", "albumin (pre)", "albumin (micro)"),
        *("hemoglobin (met-)", "albumin\u2013globulin ratio", "ischemia\u2013modified albumin"),
        *("urea breath test", "13C-urea breath test positive", "breath test (urea)", "urea breath"),
        *("albumin (urine)", "calcium (ionized)", "calcium (ionised)"),
    ],
)
def test_what_hangs_on_a_name_makes_it_another_thing(written: str):
    assert TJH.canonical_set([written]) == {written.casefold()}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("albumin \u2013 low", "albumin"),
        ("albumin\u2013low", "albumin"),
        ("albumin \u2013 marker of malnutrition", "albumin"),
        ("pre\u2013op albumin", "albumin"),
        ("albumin (pre-op)", "albumin"),
        ("(low)albumin", "albumin"),
        ("calcium (hypo-)", "calcium"),
        ("chloride (Cl-)", "Serum chloride"),
        ("lactic dehydrogenase (LDH-)", "Lactate dehydrogenase"),
        ("calcium(-0.3)", "calcium"),
    ],
)
def test_what_hangs_on_a_name_may_say_how_much_or_when(written: str, name: str):
    assert TJH.canonical_set([written]) == {name}


@pytest.mark.parametrize(
    "written", ["Respiratory rate 28 breaths/min", "RR 28 breaths", "RR (breaths)"]
)
def test_breaths_are_a_unit(written: str):
    assert BENCHMARK.match(written) == "Respiratory rate"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("calcium, ionized", {"calcium, ionized"}),
        ("calcium, ionized (low), pH", {"calcium, ionized (low)", "PH value"}),
        ("calcium, ionised 1.1 mmol/L, pH", {"calcium, ionised 1.1 mmol/l", "PH value"}),
        ("calcium (low, ionized)", {"calcium (low, ionized)"}),
        ("albumin, urine", {"albumin, urine"}),
        ("albumin (spot, urine)", {"albumin (spot, urine)"}),
        ("albumin, pre-", {"albumin, pre-"}),
        ("albumin, pre-op", {"albumin"}),
        ("calcium, total", {"calcium"}),
        ("calcium, corrected", {"Corrected calcium"}),
        ("Bilirubin, Direct (0.3)", {"Direct bilirubin"}),
        ("RDW, SD", {"RBC distribution width SD"}),
        ("lymphocytes, count", {"lymphocyte count"}),
        ("Glucose, Whole Blood", {"glucose"}),
        ("cholesterol, HDL", {"cholesterol, hdl"}),
        ("albumin, fraction", {"albumin, fraction"}),
        ("conjugated bilirubin (direct)", {"Direct bilirubin"}),
        # Items of their own.
        ("glucose, HDL, A1c", {"glucose", "hdl", "a1c"}),
        ("glucose, serum K", {"glucose", "Serum potassium"}),
        ("glucose, blood loss", {"glucose", "blood loss"}),
        ("calcium, low", {"calcium", "low"}),
        ("calcium\nionized", {"calcium", "ionized"}),
        ("calcium; ionized", {"calcium", "ionized"}),
        ('"calcium", "ionized"', {"calcium", "ionized"}),
        ("1. calcium, 2. ionized", {"calcium", "ionized"}),
    ],
)
def test_what_kind_is_meant_belongs_to_the_name_before_the_comma(written: str, names: set[str]):
    assert TJH.canonical_set(split_names(written)) == names


def test_another_kind_of_a_feature_in_brackets_or_behind_a_comma_is_not_it():
    assert ICU.canonical_set(split_names("bilirubin (direct)")) == {"bilirubin (direct)"}
    assert ICU.canonical_set(split_names("bilirubin, direct")) == {"bilirubin, direct"}
    assert ICU.canonical_set(split_names("bilirubin, total")) == {"Bilirubin"}


def test_a_fluid_behind_a_comma_is_a_feature_where_one_is_named_so():
    written = split_names("Lactate, Urine, pH")

    assert ICU.canonical_set(written) == {"Lactate", "Urine output", "pH"}
    assert BENCHMARK.canonical_set(split_names("Heart Rate, urine")) == {"Heart Rate", "urine"}


def test_names_that_are_joined_count_one_by_one():
    everything = " and ".join(feature.name for feature in BENCHMARK_17)

    assert len(BENCHMARK.members(everything)) == len(BENCHMARK_17)


def test_items_numbered_in_one_line_are_parted():
    assert split_names("1. pH 2. Heart Rate 3) Glucose") == ["pH", "Heart Rate", "Glucose"]
    assert split_names("(1) pH (2) IL 6. Weight") == ["pH", "IL 6. Weight"]
    assert split_names("Interleukin 6. Weight 2. pH") == ["Interleukin 6. Weight 2. pH"]


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("The pre-albumin is low.", []),
        ("The pre\u2013albumin is low.", []),
        ("The pre\u2011albumin is low.", []),
        ("Free hemoglobin rose.", []),
        ("Glucose-lowering drugs were given.", []),
        ("A low-albumin state.", ["albumin"]),
        ("Albumin of 28, HCO3- of 18.", ["albumin", "HCO3-"]),
    ],
)
def test_a_sentence_does_not_mention_what_hangs_on_another_word(sentence: str, names: list[str]):
    assert [mention.name for mention in TJH.mentions(sentence)] == names
