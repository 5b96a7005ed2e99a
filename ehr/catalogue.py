"""Clinical features: canonical names, units, ranges, categories and aliases."""

from dataclasses import dataclass
from enum import StrEnum


class FeatureKind(StrEnum):
    """How a feature is written and modelled."""

    NUMERIC = "numeric"
    """A number with a unit."""
    CATEGORICAL = "categorical"
    """A code with a word for each level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One clinical feature."""

    name: str
    """Canonical name, as prompts write it."""
    kind: FeatureKind = FeatureKind.NUMERIC
    unit: str = ""
    plausible: tuple[float, float] | None = None
    """Values outside are dropped and counted."""
    reference: tuple[float, float] | None = None
    """Reference range for adults."""
    categories: tuple[tuple[float, str], ...] = ()
    """Code and word of each level, ascending."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the whole name."""


CATALOGUE_VERSION = "1"
"""Grows whenever a name, an alias, a unit or a range changes: matched names depend on it."""

AGE_AND_SEX = "Age & Sex"
"""Canonical name of the demographic feature: the expert's query token, in no visit row."""

AGE_AND_SEX_ALIASES = ("age", "sex", "gender", "age and sex", "age/sex", "age and gender")
"""Every spelling of a demographic is the one demographic feature."""


def _numeric(
    name: str,
    unit: str,
    plausible: tuple[float, float] | None,
    reference: tuple[float, float] | None,
    *aliases: str,
) -> Feature:
    return Feature(name=name, unit=unit, plausible=plausible, reference=reference, aliases=aliases)


def _categorical(name: str, words: tuple[str, ...], first_code: int, *aliases: str) -> Feature:
    return Feature(
        name=name,
        kind=FeatureKind.CATEGORICAL,
        categories=tuple((float(first_code + i), word) for i, word in enumerate(words)),
        aliases=aliases,
    )


_EYE_WORDS = ("No Response", "To Pain", "To Speech", "Spontaneously")
_MOTOR_WORDS = (
    "No Response",
    "Abnormal Extension",
    "Abnormal Flexion",
    "Flex-withdraws",
    "Localizes Pain",
    "Obeys Commands",
)
_VERBAL_WORDS = (
    "No Response",
    "Incomprehensible sounds",
    "Inappropriate Words",
    "Confused",
    "Oriented",
)

BENCHMARK_17: tuple[Feature, ...] = (
    # 0.0 = refill within three seconds, 1.0 = slower: charts of the benchmark write the code.
    _categorical("Capillary refill rate", ("0.0", "1.0"), 0, "capillary refill", "cap refill"),
    _categorical(
        "Glasgow coma scale eye opening",
        _EYE_WORDS,
        1,
        "gcs eye opening",
        "gcs eye",
        "gcs e",
        "glasgow coma scale eye",
        "glasgow coma score eye opening",
        "eye opening",
        "eye opening response",
    ),
    _categorical(
        "Glasgow coma scale motor response",
        _MOTOR_WORDS,
        1,
        "gcs motor response",
        "gcs motor",
        "gcs m",
        "glasgow coma scale motor",
        "glasgow coma score motor response",
        "motor response",
    ),
    _numeric(
        "Glasgow coma scale total",
        "points",
        (3, 15),
        (15, 15),
        "glasgow coma scale",
        "glasgow coma score",
        "glasgow coma scale score",
        "glasgow coma scale total score",
        "total glasgow coma scale",
        "gcs",
        "gcs total",
        "gcs score",
        "total gcs",
    ),
    _categorical(
        "Glasgow coma scale verbal response",
        _VERBAL_WORDS,
        1,
        "gcs verbal response",
        "gcs verbal",
        "gcs v",
        "glasgow coma scale verbal",
        "glasgow coma score verbal response",
        "verbal response",
    ),
    _numeric(
        "Diastolic blood pressure",
        "mmHg",
        (10, 220),
        (60, 80),
        "diastolic pressure",
        "diastolic bp",
        "diastolic",
        "dbp",
    ),
    _numeric(
        "Fraction inspired oxygen",
        "%",
        (21, 100),
        (21, 21),
        "fraction of inspired oxygen",
        "inspired oxygen fraction",
        "inspired oxygen",
        "fio2",
    ),
    _numeric(
        "Glucose",
        "mg/dL",
        (10, 2000),
        (70, 140),
        "blood glucose",
        "serum glucose",
        "blood sugar",
        "glu",
    ),
    _numeric("Heart Rate", "bpm", (10, 300), (60, 100), "hr", "pulse", "pulse rate"),
    _numeric("Height", "cm", (120, 230), None, "body height"),
    _numeric(
        "Mean blood pressure",
        "mmHg",
        (14, 260),
        (70, 105),
        "mean arterial pressure",
        "mean arterial blood pressure",
        "mean pressure",
        "mean bp",
        "map",
        "mbp",
    ),
    _numeric(
        "Oxygen saturation",
        "%",
        (20, 100),
        (95, 100),
        "o2 saturation",
        "o2 sat",
        "blood oxygen saturation",
        "peripheral oxygen saturation",
        "arterial oxygen saturation",
        "spo2",
        "sao2",
    ),
    _numeric(
        "Respiratory rate",
        "breaths/min",
        (1, 80),
        (12, 20),
        "respiration rate",
        "breathing rate",
        "rr",
    ),
    _numeric(
        "Systolic blood pressure",
        "mmHg",
        (20, 300),
        (90, 130),
        "systolic pressure",
        "systolic bp",
        "systolic",
        "sbp",
    ),
    _numeric("Temperature", "C", (25, 45), (36.1, 37.5), "body temperature", "temp"),
    _numeric("Weight", "kg", (25, 350), None, "body weight"),
    _numeric(
        "pH",
        "",
        (6.5, 8.0),
        (7.35, 7.45),
        "ph value",
        "blood ph",
        "arterial ph",
        "arterial blood ph",
        "serum ph",
    ),
)
"""The 17 features of the in-hospital benchmark, in its order."""


def _lab(name: str, unit: str, low: float | None, high: float | None, *aliases: str) -> Feature:
    # No plausible range: Table 3 and the published baselines keep every value that is not negative,
    # and the expert view clips; what looks impossible (WBC 1726) is shown as recorded.
    reference = None if low is None or high is None else (low, high)
    return Feature(name=name, unit=unit, reference=reference, aliases=aliases)


TJH_LABS: tuple[Feature, ...] = (
    _lab(
        "Hypersensitive cardiac troponinI",
        "pg/mL",
        0,
        34,
        "hypersensitive cardiac troponin i",
        "high sensitivity cardiac troponin i",
        "high sensitivity troponin i",
        "high sensitivity troponin",
        "cardiac troponin i",
        "cardiac troponin",
        "troponin i",
        "troponin",
        "hs ctni",
        "hs tni",
        "ctni",
    ),
    _lab("hemoglobin", "g/L", 115, 175, "hemoglobin concentration", "hgb", "hb"),
    _lab("Serum chloride", "mmol/L", 99, 110, "chloride", "blood chloride"),
    _lab("Prothrombin time", "s", 11.5, 14.5, "pt"),
    _lab("procalcitonin", "ng/mL", 0, 0.5, "serum procalcitonin"),
    _lab(
        "eosinophils(%)",
        "%",
        0.4,
        8,
        "eosinophil percentage",
        "eosinophil ratio",
        "percentage of eosinophils",
        "(%)eosinophils",
    ),
    _lab(
        "Interleukin 2 receptor",
        "U/mL",
        223,
        710,
        "soluble interleukin 2 receptor",
        "il 2 receptor",
        "il2 receptor",
        "il 2r",
        "il2r",
        "sil 2r",
    ),
    _lab("Alkaline phosphatase", "U/L", 40, 150, "alp", "alk phos"),
    _lab("albumin", "g/L", 35, 52, "serum albumin", "alb"),
    _lab(
        "basophil(%)",
        "%",
        0,
        1,
        "basophil percentage",
        "basophil ratio",
        "percentage of basophils",
        "(%)basophils",
    ),
    _lab("Interleukin 10", "pg/mL", 0, 9.1, "il 10", "il10"),
    _lab("Total bilirubin", "umol/L", 3, 24, "serum total bilirubin", "bilirubin total", "tbil"),
    _lab("Platelet count", "10^9/L", 125, 350, "platelet", "plt", "plt count", "thrombocyte count"),
    _lab(
        "monocytes(%)",
        "%",
        3,
        10,
        "monocyte percentage",
        "monocyte ratio",
        "percentage of monocytes",
        "(%)monocytes",
    ),
    _lab(
        "antithrombin",
        "%",
        80,
        120,
        "anti thrombin",
        "antithrombin iii",
        "antithrombin activity",
        "at iii",
    ),
    _lab("Interleukin 8", "pg/mL", 0, 62, "il 8", "il8"),
    _lab(
        "indirect bilirubin",
        "umol/L",
        0,
        17,
        "unconjugated bilirubin",
        "bilirubin indirect",
        "bilirubin unconjugated",
        "ibil",
    ),
    _lab(
        "Red blood cell distribution width",
        "%",
        11.6,
        14.6,
        "red cell distribution width",
        "rbc distribution width",
        "rbc distribution width cv",
        "red blood cell distribution width cv",
        "rdw",
        "rdw cv",
    ),
    _lab(
        "neutrophils(%)",
        "%",
        40,
        75,
        "neutrophil percentage",
        "neutrophil ratio",
        "percentage of neutrophils",
        "(%)neutrophils",
    ),
    _lab("total protein", "g/L", 64, 83, "serum total protein", "protein total"),
    _lab(
        "Quantification of Treponema pallidum antibodies",
        "COI",
        0,
        1,
        "treponema pallidum antibodies",
        "treponema pallidum antibody quantification",
        "syphilis antibodies",
    ),
    _lab("Prothrombin activity", "%", 75, 125, "prothrombin time activity", "pta"),
    _lab("HBsAg", "IU/mL", 0, 0.05, "hepatitis b surface antigen", "hbs ag"),
    _lab("mean corpuscular volume", "fL", 82, 100, "mcv", "mean cell volume"),
    _lab("hematocrit", "%", 35, 50, "hct"),
    _lab(
        "White blood cell count",
        "10^9/L",
        3.5,
        9.5,
        "white blood cell",
        "white cell count",
        "leukocyte count",
        "leukocyte",
        "wbc",
        "wbc count",
    ),
    _lab(
        "Tumor necrosis factorα",  # noqa: RUF001 - the workbook writes the Greek letter
        "pg/mL",
        0,
        8.1,
        "tumor necrosis factor alpha",
        "tumour necrosis factor alpha",
        "tumor necrosis factor",
        "tumour necrosis factor",
        "tnf alpha",
        "tnf a",
        "tnf",
    ),
    _lab(
        "mean corpuscular hemoglobin concentration",
        "g/L",
        316,
        354,
        "mean cell hemoglobin concentration",
        "mchc",
    ),
    _lab("fibrinogen", "g/L", 2, 4, "plasma fibrinogen", "fib"),
    _lab("Interleukin 1β", "pg/mL", 0, 5, "interleukin 1 beta", "il 1 beta", "il 1b", "il1b"),
    _lab("Urea", "mmol/L", 2.6, 8, "blood urea", "serum urea", "blood urea nitrogen", "bun"),
    _lab(
        "lymphocyte count",
        "10^9/L",
        1.1,
        3.2,
        "lymphocyte number",
        "number of lymphocytes",
        "lymphocytes(#)",
        "alc",
    ),
    _lab("PH value", "", 7.35, 7.45, "ph", "blood ph", "arterial ph"),
    _lab(
        "Red blood cell count",
        "10^12/L",
        3.8,
        5.8,
        "red blood cell",
        "red cell count",
        "erythrocyte count",
        "erythrocyte",
        "rbc",
        "rbc count",
    ),
    _lab(
        "Eosinophil count",
        "10^9/L",
        0.02,
        0.52,
        "eosinophil number",
        "number of eosinophils",
        "eosinophils(#)",
    ),
    _lab(
        "Corrected calcium",
        "mmol/L",
        2.15,
        2.57,
        "calcium corrected",
        "albumin corrected calcium",
        "corrected serum calcium",
        "serum calcium corrected",
        "adjusted calcium",
    ),
    _lab("Serum potassium", "mmol/L", 3.5, 5.1, "potassium", "blood potassium"),
    _lab("glucose", "mmol/L", 3.9, 7.8, "blood glucose", "serum glucose", "blood sugar", "glu"),
    _lab(
        "neutrophils count",
        "10^9/L",
        1.8,
        6.3,
        "neutrophil number",
        "number of neutrophils",
        "neutrophils(#)",
        "anc",
    ),
    _lab(
        "Direct bilirubin",
        "umol/L",
        0,
        8,
        "conjugated bilirubin",
        "bilirubin direct",
        "bilirubin conjugated",
        "dbil",
    ),
    _lab("Mean platelet volume", "fL", 9.4, 12.5, "mpv"),
    _lab("ferritin", "ug/L", 15, 400, "serum ferritin"),
    _lab(
        "RBC distribution width SD",
        "fL",
        37,
        50,
        "red blood cell distribution width sd",
        "red cell distribution width sd",
        "rdw sd",
    ),
    _lab("Thrombin time", "s", 14, 19, "tt"),
    _lab(
        "(%)lymphocyte",
        "%",
        20,
        50,
        "lymphocytes(%)",
        "lymphocyte percentage",
        "lymphocyte ratio",
        "percentage of lymphocytes",
    ),
    _lab(
        "HCV antibody quantification",
        "COI",
        0,
        1,
        "hcv antibodies",
        "hepatitis c antibodies",
        "hepatitis c virus antibody quantification",
        "anti hcv",
    ),
    _lab("D-D dimer", "ug/mL", 0, 0.5, "d dimer", "ddimer"),
    _lab("Total cholesterol", "mmol/L", 3, 5.2, "cholesterol", "cholesterol total"),
    _lab(
        "aspartate aminotransferase", "U/L", 8, 40, "aspartate transaminase", "ast", "sgot", "got"
    ),
    _lab("Uric acid", "umol/L", 142, 416, "serum uric acid", "serum urate", "urate"),
    _lab("HCO3-", "mmol/L", 22, 29, "bicarbonate", "serum bicarbonate"),
    _lab("calcium", "mmol/L", 2.15, 2.5, "serum calcium", "total calcium", "blood calcium"),
    _lab(
        "Amino-terminal brain natriuretic peptide precursor(NT-proBNP)",
        "pg/mL",
        0,
        300,
        "amino terminal brain natriuretic peptide precursor",
        "n terminal pro brain natriuretic peptide",
        "brain natriuretic peptide",
        "nt probnp",
        "ntprobnp",
        "probnp",
        "bnp",
    ),
    _lab("Lactate dehydrogenase", "U/L", 135, 225, "ldh", "lactic dehydrogenase"),
    _lab("platelet large cell ratio", "%", 19, 47, "p lcr", "plcr", "plt large cell ratio"),
    _lab("Interleukin 6", "pg/mL", 0, 7, "il 6", "il6"),
    _lab(
        "Fibrin degradation products",
        "ug/mL",
        0,
        5,
        "fibrinogen degradation products",
        "fibrin split products",
        "fdp",
    ),
    _lab(
        "monocytes count",
        "10^9/L",
        0.1,
        0.6,
        "monocyte number",
        "number of monocytes",
        "monocytes(#)",
    ),
    _lab("PLT distribution width", "fL", 9, 17, "platelet distribution width", "pdw"),
    _lab("globulin", "g/L", 20, 35, "serum globulin"),
    _lab(
        "γ-glutamyl transpeptidase",  # noqa: RUF001 - the workbook writes the Greek letter
        "U/L",
        10,
        71,
        "gamma glutamyl transferase",
        "gamma gt",
        "glutamyl transpeptidase",
        "ggt",
    ),
    _lab(
        "International standard ratio",
        "",
        0.8,
        1.2,
        "international normalized ratio",
        "international normalised ratio",
        "inr",
    ),
    _lab(
        "basophil count(#)",
        "10^9/L",
        0,
        0.06,
        "basophil count",
        "basophil number",
        "number of basophils",
        "basophils(#)",
    ),
    _lab("mean corpuscular hemoglobin", "pg", 27, 34, "mean cell hemoglobin", "mch"),
    _lab(
        "Activation of partial thromboplastin time",
        "s",
        29,
        42,
        "activated partial thromboplastin time",
        "partial thromboplastin time",
        "aptt",
        "ptt",
    ),
    _lab(
        "High sensitivity C-reactive protein",
        "mg/L",
        0,
        5,
        "hypersensitive c reactive protein",
        "c reactive protein",
        "hs crp",
        "hscrp",
        "crp",
    ),
    _lab(
        "HIV antibody quantification",
        "COI",
        0,
        1,
        "hiv antibodies",
        "anti hiv",
    ),
    _lab("serum sodium", "mmol/L", 136, 145, "sodium", "blood sodium"),
    _lab("thrombocytocrit", "%", 0.15, 0.32, "plateletcrit"),
    _lab("ESR", "mm/h", 0, 20, "erythrocyte sedimentation rate", "sedimentation rate", "sed rate"),
    _lab(
        "glutamic-pyruvic transaminase",
        "U/L",
        7,
        45,
        "alanine aminotransferase",
        "alanine transaminase",
        "alt",
        "sgpt",
        "gpt",
    ),
    _lab(
        "eGFR",
        "mL/min/1.73m2",
        90,
        130,
        "estimated glomerular filtration rate",
        "glomerular filtration rate",
        "gfr",
    ),
    _lab("creatinine", "umol/L", 45, 104, "serum creatinine", "blood creatinine", "crea"),
)
"""The 73 labs of the Tongji workbook in its order; names as there, blanks at the ends stripped."""
