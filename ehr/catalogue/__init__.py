"""Clinical features: canonical names, units, ranges, categories and aliases, by source."""

from ehr.catalogue.benchmark import BENCHMARK_17
from ehr.catalogue.feature import Feature, FeatureKind
from ehr.catalogue.physionet2012 import PHYSIONET2012, PHYSIONET2012_BENCHMARK
from ehr.catalogue.tjh import TJH_LABS

__all__ = [
    "AGE_AND_SEX",
    "AGE_AND_SEX_ALIASES",
    "BENCHMARK_17",
    "CATALOGUE_VERSION",
    "KNOWN_FEATURES",
    "OTHER_MEASUREMENTS",
    "PHYSIONET2012",
    "PHYSIONET2012_BENCHMARK",
    "TJH_LABS",
    "Feature",
    "FeatureKind",
]

CATALOGUE_VERSION = "3"
"""Grows whenever a name, an alias, a unit or a range changes: matched names depend on it."""

AGE_AND_SEX = "Age & Sex"
"""Canonical name of the demographic feature: the expert's query token, in no visit row."""

AGE_AND_SEX_ALIASES = ("age", "sex", "gender", "age and sex", "age/sex", "age and gender")
"""Every spelling of a demographic is the one demographic feature."""


OTHER_MEASUREMENTS: tuple[str, ...] = (
    *(
        "pulse pressure",
        "pulmonary artery systolic pressure",
        "pulmonary artery diastolic pressure",
    ),
    *("pulmonary systolic pressure", "artificial respiration", "assisted respiration"),
    *("venous oxygen saturation", "molecular weight", "birth weight", "gestational age"),
    *("ideal body weight", "predicted body weight", "hemoglobin a1c", "glycated hemoglobin"),
    *("glycosylated hemoglobin", "fetal hemoglobin", "troponin t", "troponint"),
    *("cardiac troponin t", "ionized calcium", "calcium ionized", "coronary calcium"),
    *("calcium channel", "hdl cholesterol", "ldl cholesterol", "nucleated red blood cell"),
    *("packed red blood cell", "neutrophil to lymphocyte ratio", "neutrophil lymphocyte ratio"),
    *("platelet to lymphocyte ratio", "platelet lymphocyte ratio"),
    *("lymphocyte to monocyte ratio", "lymphocyte monocyte ratio"),
    # A last letter or number that looks like a unit or a value.
    *("troponin c", "hemoglobin a2", "hemoglobin c", "hemoglobin e", "hemoglobin f"),
    *("hemoglobin s", "platelet factor", "calcium score", "interleukin 6 receptor"),
    # Words that change nothing beside other names change these.
    *("plasma hemoglobin", "mean hemoglobin", "peripheral pulse", "noninvasive ventilation"),
    *("non invasive ventilation", "minute ventilation", "blood loss", "blood group"),
    *("venous ph", "venous blood ph", "venous oxygen", "venous carbon dioxide", "venous po2"),
    *("venous pco2", "venous oxygen pressure", "venous oxygen tension", "venous o2 saturation"),
    *("venous pao2", "venous paco2", "venous co2"),
    # One letter from a feature's name, and something else.
    "lactase",
)
"""Names of what no cohort here measures that have a feature's name inside: they are not it."""

KNOWN_FEATURES: tuple[Feature, ...] = (*BENCHMARK_17, *TJH_LABS, *PHYSIONET2012)
"""Features of every source, benchmark features twice; names alike have units alike."""
