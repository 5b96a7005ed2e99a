"""A generated ICU cohort whose true risks and true salient features are known.

Every patient has a severity per organ system. It changes from visit to visit, moves the charted
vitals, coma scores and labs, and decides the label: the log-odds are a sum over systems, and each
system's share belongs to the features that show it. Charts first, labels afterwards, from separate
random streams: both tasks have the same patients with the same charts. Readmission is a time drawn
for every patient, whatever the horizon: a longer one makes positives of negatives, never the
reverse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd
from scipy.special import expit

from ehr.catalogue import AGE_AND_SEX, BENCHMARK_17
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    Sex,
    make_splits,
)
from ehr.cohorts.schema import CONTRIBUTION_PREFIX, NUM_TRUE_SALIENT, SALIENT_COLUMNS
from ehr.config import DEFAULT_HORIZON_DAYS, CohortSection, Task

TARGET_AUROC = 0.885
"""Expected AUROC of the true risk: what a perfect reader of the latent state could reach."""

SYSTEMS = ("neurological", "circulatory", "respiratory", "metabolic", "inflammatory", "frailty")
"""Organ systems with a latent severity of 0 (healthy) or more."""

_NEURO, _CIRC, _RESP, _METAB, _INFLAM, _FRAIL = range(len(SYSTEMS))

_NAMES = tuple(feature.name for feature in BENCHMARK_17)
_COLUMN = {name: index for index, name in enumerate(_NAMES)}

# How strongly each feature shows each system. Height shows none: it is there to be ignored.
_LOADINGS: dict[str, dict[int, float]] = {
    "Capillary refill rate": {_CIRC: 0.8},
    "Glasgow coma scale eye opening": {_NEURO: 0.9},
    "Glasgow coma scale motor response": {_NEURO: 1.0},
    "Glasgow coma scale total": {_NEURO: 1.2},
    "Glasgow coma scale verbal response": {_NEURO: 0.8},
    "Diastolic blood pressure": {_CIRC: 0.6},
    "Fraction inspired oxygen": {_RESP: 1.1},
    "Glucose": {_METAB: 0.9},
    "Heart Rate": {_CIRC: 0.7, _INFLAM: 0.8},
    "Mean blood pressure": {_CIRC: 1.0},
    "Oxygen saturation": {_RESP: 0.9},
    "Respiratory rate": {_RESP: 0.8, _METAB: 0.4},
    "Systolic blood pressure": {_CIRC: 0.8},
    "Temperature": {_INFLAM: 1.0},
    "Weight": {_FRAIL: 1.0},
    "pH": {_METAB: 1.1, _RESP: 0.3},
}

# What each system adds to the log-odds per unit of severity, before `TARGET_AUROC` sets the scale.
# Death follows the last day's brain, circulation and lungs; return to the ICU the whole stay's
# frailty, metabolism and lungs.
_SYSTEM_WEIGHTS = {
    Task.MORTALITY: np.array([1.2, 1.2, 1.0, 1.0, 0.7, 0.5]),
    Task.READMISSION: np.array([0.6, 0.7, 1.0, 1.1, 0.8, 1.0]),
}
_AGE_WEIGHT = 0.6
_MALE_WEIGHT = 0.15
_RETURN_SHAPE = 0.5
"""Shape of the times to readmission, which are log-logistic: the odds of having come back grow as
the square root of the days. The hazard falls from the discharge on, as that of real ICU patients
does, and the effect of a feature on the log-odds is the same at every horizon."""

# Share of visits at which a healthy patient's feature is not charted. The first three groups are
# charted together: coma parts by one nurse, pressures by one cuff.
_COMA_PARTS = (
    "Glasgow coma scale eye opening",
    "Glasgow coma scale motor response",
    "Glasgow coma scale verbal response",
)
_PRESSURES = ("Systolic blood pressure", "Diastolic blood pressure", "Mean blood pressure")
_MISSING: tuple[tuple[tuple[str, ...], float], ...] = (
    (_COMA_PARTS, 0.10),
    (_PRESSURES, 0.03),
    (("Capillary refill rate",), 0.85),
    (("Fraction inspired oxygen",), 0.55),
    (("Glucose",), 0.15),
    (("Heart Rate",), 0.02),
    (("Oxygen saturation",), 0.03),
    (("Respiratory rate",), 0.04),
    (("Temperature",), 0.08),
    (("pH",), 0.65),
)
# Sicker patients are charted more: log-odds of a gap fall by this much per unit of severity.
_CHARTING_EFFECT = 0.8
# An intubated patient's verbal response cannot be scored, so that there is no total either.
_UNSCORABLE_VERBAL = 0.05
_HEIGHT_KNOWN = 0.25
_WEIGHT_KNOWN = (0.75, 0.30)
"""At the first visit, and at each later one."""

# Charted at the last visit if nothing else shows the system, so that every contribution to the
# true risk belongs to features which the record holds.
_ANCHORS = {
    _NEURO: _COMA_PARTS,
    _CIRC: _PRESSURES,
    _RESP: ("Oxygen saturation",),
    _METAB: ("Glucose",),
    _INFLAM: ("Temperature",),
    _FRAIL: ("Weight",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ward:
    """Everything about the generated patients that does not depend on the task."""

    ids: tuple[str, ...]
    num_visits: np.ndarray
    days: np.ndarray
    """[patients, visits]"""
    admissions: tuple[date, ...]
    age: np.ndarray
    male: np.ndarray
    severity: np.ndarray
    """[patients, visits, systems]; visits past a patient's last repeat it."""
    gain: np.ndarray
    """[patients, features]: how strongly this patient's feature answers to its systems."""
    charts: np.ndarray
    """[patients, visits, features]; NaN = not charted."""


def generate(section: CohortSection) -> Cohort:
    """A synthetic cohort with its truth table, the same for the same section.

    The truth table has, for every patient: `true_risk`, the probability its label was drawn with;
    `base_log_odds` and one contribution per feature (`Age & Sex` included), which add up to the
    risk's log-odds; and the five features that contribute most, `salient_1` the largest. Of a
    readmission's truth only `true_risk` and `base_log_odds` depend on the horizon.

    Raises:
        DataError: if the patients cannot be split.
    """
    ward = _ward(section)
    kept = ward.num_visits >= section.min_visits
    contributions, base = _log_odds(ward, section)
    base += _horizon_log_odds(section)
    risk = expit(base + contributions.sum(axis=1))
    # The same draws at every horizon: whoever has come back within a short one has within a longer.
    draws = _stream(section, 1 + list(Task).index(section.task)).random(len(ward.ids))
    cases = {ward.ids[row]: _case(ward, row) for row in np.flatnonzero(kept)}
    labels = {ward.ids[row]: int(draws[row] < risk[row]) for row in np.flatnonzero(kept)}
    dropped = {} if kept.all() else {"patients_with_too_few_visits": int((~kept).sum())}
    truth = _truth(ward, risk, base, contributions).loc[kept].reset_index(drop=True)
    return Cohort(
        name="synthetic",
        task=section.task,
        horizon_days=section.horizon_days,
        features=BENCHMARK_17,
        cases=cases,
        labels=labels,
        splits=make_splits(
            labels,
            num_test=max(1, round(len(labels) * section.test_fraction)),
            validation_fraction=section.validation_fraction,
            seed=section.seed,
            stratified=section.stratified is not False,
        ),
        has_dates=True,
        dropped=dropped,
        truth=truth,
    )


def _stream(section: CohortSection, purpose: int) -> np.random.Generator:
    return np.random.default_rng([section.seed, purpose])


def _ward(section: CohortSection) -> _Ward:
    rng = _stream(section, 0)
    patients, visits = section.num_patients, section.num_visits
    num_visits = rng.integers(max(1, visits - 2), visits, size=patients, endpoint=True)
    # Rounds are daily; now and then a day has no complete chart.
    gaps = rng.choice([1, 2, 3], size=(patients, visits), p=[0.8, 0.15, 0.05])
    gaps[:, 0] = 0
    days = gaps.cumsum(axis=1).astype(np.float64)
    # Shifted into the future, as de-identified records are.
    admissions = tuple(
        date(2130, 1, 1) + timedelta(days=int(offset))
        for offset in rng.integers(0, 60 * 365, size=patients)
    )
    age = np.clip(np.round(rng.normal(63, 15, patients)), 18, 95)
    male = rng.random(patients) < 0.56
    severity = _severity(rng, num_visits, visits)
    gain = rng.lognormal(0, 0.3, size=(patients, len(_NAMES)))
    charts = _charts(rng, severity, gain, male)
    charts[_gaps(rng, severity, num_visits)] = np.nan
    parts = charts[..., [_COLUMN[name] for name in _COMA_PARTS]]
    charts[..., _COLUMN["Glasgow coma scale total"]] = parts.sum(axis=-1)
    width = len(str(patients))
    return _Ward(
        ids=tuple(f"S{index:0{width}d}" for index in range(1, patients + 1)),
        num_visits=num_visits,
        days=days,
        admissions=admissions,
        age=age,
        male=male,
        severity=severity,
        gain=gain,
        charts=charts,
    )


def _severity(rng: np.random.Generator, num_visits: np.ndarray, visits: int) -> np.ndarray:
    patients, systems = len(num_visits), len(SYSTEMS)
    # How ill a patient is makes every system likelier to fail; which ones do is the patient's own.
    acuity = rng.normal(size=(patients, 1))
    fails = rng.random((patients, systems)) < expit(-1.2 + 0.7 * acuity)
    mild = rng.gamma(1.2, 0.2, size=(patients, systems))
    failing = 1.2 + rng.gamma(2.0, 0.5, size=(patients, systems))
    final = np.where(fails, failing, mild)
    # Backwards from the last visit: some recover, some get worse, each system at its own rate.
    rate = rng.normal(0, 0.25, size=(patients, 1, systems))
    rate[..., _FRAIL] = 0  # frailty does not change within a stay
    visits_left = np.maximum(num_visits[:, None] - 1 - np.arange(visits), 0)[..., None]
    wobble = rng.normal(0, 0.12, size=(patients, visits, systems)) * (visits_left > 0)
    wobble[..., _FRAIL] = 0
    return np.clip(final[:, None] * np.exp(rate * visits_left + wobble), 0, 5)


def _charts(
    rng: np.random.Generator, severity: np.ndarray, gain: np.ndarray, male: np.ndarray
) -> np.ndarray:
    """Complete charts [patients, visits, features], rounded as a ward rounds."""
    shape = severity.shape[:2]

    def shown(name: str) -> np.ndarray:
        weights = np.zeros(len(SYSTEMS))
        for system, loading in _LOADINGS[name].items():
            weights[system] = loading
        return gain[:, None, _COLUMN[name]] * (severity @ weights)

    def noise(scale: float) -> np.ndarray:
        return rng.normal(0, scale, size=shape)

    def per_patient(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values[:, None], shape)

    charts = np.empty((*shape, len(_NAMES)))

    def chart(name: str, values: np.ndarray, low: float, high: float, digits: int = 0) -> None:
        charts[..., _COLUMN[name]] = np.round(np.clip(values, low, high), digits)

    delayed = rng.random(shape) < expit(-2.4 + 1.8 * shown("Capillary refill rate"))
    chart("Capillary refill rate", delayed.astype(np.float64), 0, 1)
    for name, best, drop in zip(_COMA_PARTS, (4, 6, 5), (0.85, 1.05, 1.25), strict=True):
        chart(name, best + 0.25 - drop * shown(name) + noise(0.3), 1, best)

    mean = 88 - 9 * shown("Mean blood pressure") + noise(5)
    # Systolic and diastolic pressure lie a pulse pressure apart, the mean a third of the way up;
    # the least pulse pressure keeps their order after rounding.
    pulse = 46 - 4 * shown("Systolic blood pressure") + 3 * shown("Diastolic blood pressure")
    pulse = np.clip(pulse + noise(5), 15, 90)
    mean = np.clip(mean, 38, 130)
    chart("Mean blood pressure", mean, 38, 130)
    chart("Systolic blood pressure", mean + pulse * 2 / 3, 40, 220)
    chart("Diastolic blood pressure", mean - pulse / 3, 15, 125)
    chart("Heart Rate", 78 + 14 * shown("Heart Rate") + noise(7), 35, 190)

    # Dialled in steps of five above room air.
    oxygen = 22 + 19 * shown("Fraction inspired oxygen") + noise(4)
    oxygen = np.where(oxygen < 26, 21, 5 * np.round(oxygen / 5))
    chart("Fraction inspired oxygen", oxygen, 21, 100)
    chart("Oxygen saturation", 97.8 - 2.8 * shown("Oxygen saturation") + noise(1.0), 68, 100)
    chart("Respiratory rate", 16 + 4.5 * shown("Respiratory rate") + noise(2.2), 8, 50)

    chart("Glucose", 112 * np.exp(0.33 * shown("Glucose") + noise(0.15)), 45, 900)
    chart("pH", 7.40 - 0.055 * shown("pH") + noise(0.02), 6.8, 7.6, digits=2)
    # Some infections chill; sign is the patient's own.
    sign = per_patient(np.where(rng.random(shape[0]) < 0.15, -1.0, 1.0))
    chart("Temperature", 36.8 + sign * 0.65 * shown("Temperature") + noise(0.25), 33, 41.5, 1)

    height = np.where(male, rng.normal(176, 7, shape[0]), rng.normal(163, 6.5, shape[0]))
    chart("Height", per_patient(height), 140, 205)
    body_mass_index = per_patient(27.5 + rng.normal(0, 2.5, shape[0])) - 3.0 * shown("Weight")
    weight = np.maximum(body_mass_index, 13.5) * per_patient(height / 100) ** 2 + noise(0.6)
    chart("Weight", weight, 30, 200, digits=1)
    return charts


def _gaps(rng: np.random.Generator, severity: np.ndarray, num_visits: np.ndarray) -> np.ndarray:
    """What is not charted, bool [patients, visits, features]; the coma total follows its parts."""
    shape = severity.shape[:2]
    gaps = np.zeros((*shape, len(_NAMES)), dtype=bool)
    for names, share in _MISSING:
        worst = severity[..., list(_LOADINGS[names[0]])].max(axis=-1)
        odds = np.log(share / (1 - share)) - _CHARTING_EFFECT * worst
        for name, gap in zip(names, [rng.random(shape) < expit(odds)] * len(names), strict=True):
            gaps[..., _COLUMN[name]] = gap
    verbal = _COLUMN["Glasgow coma scale verbal response"]
    gaps[..., verbal] |= rng.random(shape) < _UNSCORABLE_VERBAL
    # Body measures are taken on admission.
    gaps[..., _COLUMN["Height"]] = True
    gaps[:, 0, _COLUMN["Height"]] = rng.random(shape[0]) >= _HEIGHT_KNOWN
    gaps[..., _COLUMN["Weight"]] = rng.random(shape) >= _WEIGHT_KNOWN[1]
    gaps[:, 0, _COLUMN["Weight"]] = rng.random(shape[0]) >= _WEIGHT_KNOWN[0]

    within = (np.arange(shape[1]) < num_visits[:, None])[..., None]
    last = num_visits - 1
    for system, anchors in _ANCHORS.items():
        shows = [_COLUMN[name] for name, loadings in _LOADINGS.items() if system in loadings]
        # The total is not charted but summed, so that it shows nothing its parts do not.
        shows = [column for column in shows if column != _COLUMN["Glasgow coma scale total"]]
        unseen = np.flatnonzero((gaps[..., shows] | ~within).all(axis=(1, 2)))
        for name in anchors:
            gaps[unseen, last[unseen], _COLUMN[name]] = False
    return gaps


def _log_odds(ward: _Ward, section: CohortSection) -> tuple[np.ndarray, float]:
    """Contributions [patients, features + 1], the demographic one last, and the base log-odds."""
    patients = np.arange(len(ward.ids))
    within = np.arange(ward.severity.shape[1]) < ward.num_visits[:, None]
    if section.task is Task.MORTALITY:
        state = ward.severity[patients, ward.num_visits - 1]
    else:
        state = np.einsum("pvs,pv->ps", ward.severity, within) / ward.num_visits[:, None]
    systems = _SYSTEM_WEIGHTS[section.task] * state

    loadings = np.zeros((len(_NAMES), len(SYSTEMS)))
    for name, by_system in _LOADINGS.items():
        for system, loading in by_system.items():
            loadings[_COLUMN[name], system] = loading
    observed = (~np.isnan(ward.charts) & within[..., None]).any(axis=1)
    shares = (ward.gain * observed)[..., None] * loadings
    shares /= shares.sum(axis=1, keepdims=True)
    by_feature = np.einsum("pfs,ps->pf", shares, systems)
    demographic = _AGE_WEIGHT * (ward.age - 60) / 15 + _MALE_WEIGHT * ward.male
    contributions = np.concatenate([by_feature, demographic[:, None]], axis=1)

    total = contributions.sum(axis=1)
    scale = _bisect(
        lambda scale: _expected_auroc(_calibrated_risk(scale * total, section.positive_fraction)),
        TARGET_AUROC,
        0.01,
        20.0,
    )
    scaled = scale * contributions
    return scaled, _intercept(scaled.sum(axis=1), section.positive_fraction)


def _horizon_log_odds(section: CohortSection) -> float:
    """What a horizon adds to the log-odds of readmission within 30 days; 0 for other tasks."""
    if section.task is not Task.READMISSION:
        return 0.0
    # Not the log of a quotient: an integer of any size has a logarithm.
    return _RETURN_SHAPE * (math.log(section.horizon_days) - math.log(DEFAULT_HORIZON_DAYS))


def _calibrated_risk(log_odds: np.ndarray, positive_fraction: float) -> np.ndarray:
    return expit(log_odds + _intercept(log_odds, positive_fraction))


def _intercept(log_odds: np.ndarray, positive_fraction: float) -> float:
    reach = float(np.abs(log_odds).max()) + 10
    return _bisect(
        lambda intercept: float(expit(log_odds + intercept).mean()),
        positive_fraction,
        -reach,
        reach,
    )


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches a target; the nearer bound if it does not."""
    # 60 halvings reach the resolution of a float: the result does not depend on a tolerance.
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _expected_auroc(risk: np.ndarray) -> float:
    """AUROC of the risks, in expectation over labels drawn from them."""
    ordered = np.sort(risk)
    negatives_below = np.concatenate([[0.0], np.cumsum(1 - ordered)[:-1]])
    # A patient is never compared with itself, hence the last term.
    pairs = ordered.sum() * (1 - ordered).sum() - (ordered * (1 - ordered)).sum()
    return float((ordered * negatives_below).sum() / pairs)


def _truth(ward: _Ward, risk: np.ndarray, base: float, contributions: np.ndarray) -> pd.DataFrame:
    names = np.array([*_NAMES, AGE_AND_SEX])
    # By size, sign aside: what protects carries a prediction too. Ties keep the features' order.
    order = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :NUM_TRUE_SALIENT]
    salient = names[order]
    table = pd.DataFrame(
        {
            "patient_id": pd.Series(ward.ids, dtype="str"),
            "true_risk": risk,
            "base_log_odds": np.full(len(risk), base),
        }
    )
    for rank, column in enumerate(SALIENT_COLUMNS):
        table[column] = pd.Series(salient[:, rank].tolist(), dtype="str")
    columns = pd.DataFrame(contributions, columns=[CONTRIBUTION_PREFIX + name for name in names])
    return pd.concat([table, columns], axis=1)


def _case(ward: _Ward, row: int) -> PatientCase:
    visits = int(ward.num_visits[row])
    days = ward.days[row, :visits]
    return PatientCase(
        patient_id=ward.ids[row],
        sex=Sex.MALE if ward.male[row] else Sex.FEMALE,
        age=float(ward.age[row]),
        visit_labels=tuple(
            (ward.admissions[row] + timedelta(days=int(day))).isoformat() for day in days
        ),
        visit_days=tuple(float(day) for day in days),
        values=ward.charts[row, :visits].copy(),
    )
