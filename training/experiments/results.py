"""The results of an experiment: every arm over its seeds, paired differences, ceilings.

What an interval covers: how far the mean over seeds would move with other patients of this cohort
and other seeds of the arm's own training, arms being paired by seed (a t interval, `ehr.seeds`).
One seed or two are too few for that: percentiles over patients, for the policies that were trained;
what so few seeds leave out stands beside them. P-values of differences are by the same t, and
adjusted by Holm's method for all differences on one cohort's patients, which is one table. Not
covered: another Stage 1, another expert, another split, another sample of an answer; the best
constant set is held fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ehr.errors import DataError
from ehr.rewards import classification_reward
from ehr.seeds import holm, seeds_note
from training.evaluation.methods import RECORD_METHODS, method_label
from training.evaluation.other_patients import own_patients_sentence
from training.experiments.answers import (
    Answered,
    ConstantSet,
    Known,
    Resamples,
    answered,
    constant_set,
    lacks_names,
    named_sets,
    overlaps,
    salient_sets,
)
from training.experiments.arms import ARMS, PARTS
from training.experiments.measures import (
    DIFFERENCE_MEASURES,
    MEASURES,
    difference_of,
    estimate_of_arm,
)
from training.experiments.records import ExperimentRecords, UnitRecords, model_description
from training.readable import finite_number
from training.run.files import as_object

REFERENCES = ("eag_rl", "stage1_dapo", "stage1_grpo", "stage1", "sft")
"""The first of these that an experiment plans is compared with every other arm. Beside these
comparisons stand those of `training.experiments.arms.PARTS`."""

TOKEN_KEYS = {
    "prompt": ("tokens/prompt",),
    "sampled": ("tokens/response",),
    "trained": ("tokens/trained", "sft/tokens"),
    "learner": ("tokens/learner",),
}
"""Tokens of a unit's training, summed over its steps: read by the generator, written by it, in the
loss, and passed through the learner. An answer that was not trained on counts too."""

Results = Mapping[str, Any]
"""What `learn_rows` returns and `RUN/learn/results.json` holds."""

STEP_MEANS = ("clip/adaptive_share", "clip/high_share", "rollout/parse_failure_rate")
"""Metrics of a unit's steps that are also given as means over its steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """All finished units on the patients that all of them answered."""

    patients: list[str]
    num_left_out: int
    units: Mapping[str, Mapping[int, Answered]]
    """By arm, in the order of `ARMS`, then seed."""
    resamples: Resamples
    salient: list[frozenset[str]]
    constant: ConstantSet | None
    """None where no expert was trained on the patients' cohort."""
    most_names: int
    has_every_name: bool
    """What is said of names is of all answers; else of the first answer of each patient."""


def learn_rows(records: ExperimentRecords) -> dict[str, Any]:
    """The results as JSON: facts, arms, differences, references, unfinished units, problems.

    Only finished units are measured. A value that does not exist is null. `other_cohort` has the
    same of `evaluate.other_cohort`; null where no unit was asked about one.
    """
    config = records.config
    elsewhere = records.on_other_cohort()
    return {
        "name": config.run.name,
        "created": records.record.get("created"),
        "commit": records.record.get("commit"),
        "model": model_description(records),
        "cohort": config.cohort.source,
        "data_origin": config.run.data_origin,
        "task": str(config.cohort.task),
        "prompt": config.prompt.kind,
        "format": config.prompt.format,
        "num_train_patients": records.num_train_patients,
        "num_train_positives": records.num_train_positives,
        "seeds": list(config.learn.seeds),
        "accuracy_weight": config.reward.accuracy_weight,
        "reading": records.reading,
        "score": config.reward.score,
        "num_samples": config.evaluate.num_samples,
        "num_resamples": config.evaluate.num_resamples,
        "resample_seed": config.evaluate.seed,
        **_found(records),
        "other_cohort": None
        if elsewhere is None
        else {**_other_cohort_facts(elsewhere), **_found(elsewhere)},
        "unfinished": [_unfinished(unit) for unit in records.units if not unit.is_finished],
        "problems": list(records.problems),
    }


def _found(records: ExperimentRecords) -> dict[str, Any]:
    """Everything that is measured on one cohort's test patients."""
    measured = _measure(records)
    reference = next((arm for arm in REFERENCES if arm in _planned(records)), None)
    if measured is None:
        return {
            "num_patients": 0,
            "num_positives": 0,
            "num_patients_left_out": 0,
            "names_of": None,
            "reference": reference,
            "arms": [],
            "differences": [],
            "references": [],
        }
    labels = next(iter(next(iter(measured.units.values())).values())).labels
    experts = _expert_answers(records, measured, labels)
    return {
        "num_patients": len(labels),
        "num_positives": int(labels.sum()),
        "num_patients_left_out": measured.num_left_out,
        "names_of": "every answer" if measured.has_every_name else "first answer",
        "reference": reference,
        "arms": [_arm(arm, records, measured) for arm in measured.units],
        "differences": _differences(reference, measured, experts),
        "references": _references(records, measured, labels, experts),
    }


def _other_cohort_facts(records: ExperimentRecords) -> dict[str, Any]:
    described = as_object(records.other_cohort)
    schema, cohort = as_object(described.get("map")), as_object(described.get("cohort"))
    return {
        "cohort": str(cohort.get("name", "unknown")),
        "own_patients": own_patients_sentence(cohort),
        "trained_on": records.config.cohort.source,
        "num_samples": records.config.evaluate.num_samples,
        "num_mapped": len(schema.get("pairs") or ()),
        "num_missing": len(schema.get("missing") or ()),
    }


def _planned(records: ExperimentRecords) -> set[str]:
    return {unit.arm for unit in records.units}


def _measure(records: ExperimentRecords) -> _Measured | None:
    config = records.config
    tables = {
        (unit.arm, unit.seed): unit.predictions.assign(
            patient_id=unit.predictions["patient_id"].astype(str)
        )
        for unit in records.units
        if unit.predictions is not None
    }
    if not tables:
        return None
    asked = [set(table["patient_id"]) for table in tables.values()]
    patients = sorted(set.intersection(*asked))
    if not patients:
        raise DataError(
            "the experiment's finished units must have answered the same test patients, but share "
            f"none of {len(set.union(*asked))}; evaluate them again with --redo evaluate"
        )
    sample = next(iter(tables.values())).set_index("patient_id").loc[patients]
    has_expert = bool(sample["salient"].notna().all())
    salient = salient_sets(sample) if has_expert else []
    # one table never mixes measures of the first answer's names with those of all answers'
    has_every_name = not any(lacks_names(table) for table in tables.values())
    named = [
        len(names)
        for table in tables.values()
        for answer in named_sets(table, has_every_name=has_every_name)
        for names in answer
    ]
    most = max(config.expert.num_salient_features, *named)
    constant = constant_set(salient, most) if has_expert else None
    resamples = Resamples.draw(len(patients), config.evaluate.num_resamples, config.evaluate.seed)
    units: dict[str, dict[int, Answered]] = {}
    for unit in records.units:
        if unit.predictions is not None:
            units.setdefault(unit.arm, {})[unit.seed] = answered(
                tables[unit.arm, unit.seed],
                patients,
                config.reward,
                resamples,
                Known(
                    constant=constant,
                    truth=records.truth,
                    faithfulness=unit.faithfulness,
                    rate=_rate_hidden_by_balance(unit.arm, records),
                ),
                has_every_name=has_every_name,
            )
    return _Measured(
        patients=patients,
        num_left_out=len(set.union(*asked)) - len(patients),
        units=units,
        resamples=resamples,
        salient=salient,
        constant=constant,
        most_names=most,
        has_every_name=has_every_name,
    )


def _rate_hidden_by_balance(arm: str, records: ExperimentRecords) -> float | None:
    """The cohort's rate of positives, where the arm learned from as many positives as negatives.

    What an arm learned from last decides: Stage 2 draws its batches by `grpo.balance`, direct
    predictions are always half positives (`training.sft.predictions`), and Stage 1 learns from the
    searched patients, whom `search.balance` halves unless a class runs out. Untrained models
    learned nothing from the cohort. None for them, for arms that learned at the cohort's rate, and
    for all where the test patients are balanced themselves (`evaluate.balance`).
    """
    config, found = records.config, ARMS[arm]
    num, num_positives = records.num_train_patients, records.num_train_positives
    if config.evaluate.balance or num is None or num_positives is None:
        return None
    if found.own_stage == "grpo":
        is_half = config.grpo.balance
    elif found.own_stage == "direct_sft":
        is_half = True
    else:
        num_searched = min(config.search.num_patients or num, num)
        has_enough = num_searched <= 2 * min(num_positives, num - num_positives)
        is_half = found.needs_stage1 and config.search.balance and has_enough
    return records.train_rate if is_half else None


def _arm(arm: str, records: ExperimentRecords, measured: _Measured) -> dict[str, Any]:
    units = measured.units[arm]
    known = {unit.seed: unit for unit in records.units if unit.arm == arm}
    rows = [
        {
            "seed": seed,
            "measures": _estimates([each]),
            **_effort(known[seed]),
        }
        for seed, each in units.items()
    ]
    return {
        "arm": arm,
        "label": arm_label(arm),
        "text": ARMS[arm].text,
        "num_seeds": len(units),
        "num_planned_seeds": len(known),
        "trains": ARMS[arm].own_stage is not None,
        "seeds_note": seeds_note(len(units)) if ARMS[arm].own_stage is not None else None,
        "measures": _estimates(list(units.values())),
        "seconds": fmean(row["seconds"] for row in rows),
        "units": rows,
    }


def _estimates(units: Sequence[Answered]) -> dict[str, Any]:
    """Every measure's mean over the units (seeds) with its interval; null where one lacks it."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        known = estimate_of_arm(name, units)
        found[name] = None if known is None or known.value is None else asdict(known)
    return found


def _effort(unit: UnitRecords) -> dict[str, Any]:
    tokens = {
        name: None if not (found := _numbers(unit, keys)) else int(sum(found))
        for name, keys in TOKEN_KEYS.items()
    }
    means = {
        key: None if not (found := _numbers(unit, (key,))) else fmean(found) for key in STEP_MEANS
    }
    return {
        "seconds": round(sum(unit.seconds.values()), 1),
        "stage_seconds": dict(unit.seconds),
        "steps": len(unit.steps),
        "tokens": tokens,
        "step_means": means,
    }


def _numbers(unit: UnitRecords, keys: Sequence[str]) -> list[float]:
    return [
        value
        for step in unit.steps
        for key in keys
        if (value := finite_number(step.get(key))) is not None
    ]


def _differences(
    reference: str | None, measured: _Measured, experts: Mapping[str, Answered]
) -> list[dict[str, Any]]:
    everybody = (*measured.units, *experts)
    pairs = [(reference, arm) for arm in everybody if reference is not None and arm != reference]
    parts = [(first, second) for first, second in PARTS if first != reference != second]
    rows = [
        row
        for first, second in (*pairs, *parts)
        if first in measured.units and second in everybody
        for row in _rows_of_pair(first, second, measured, experts)
    ]
    adjusted = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _rows_of_pair(
    first: str, second: str, measured: _Measured, experts: Mapping[str, Answered]
) -> list[dict[str, Any]]:
    """First minus second in every measure that both have."""
    ours = measured.units[first]
    if second in experts:
        paired = dict.fromkeys(ours, experts[second])
    else:
        paired = measured.units[second]
        # Who was asked once, as an arm without training of its own, stands against every seed.
        if ARMS[second].own_stage is None:
            paired = dict.fromkeys(ours, next(iter(paired.values())))
    seeds = sorted(ours.keys() & paired.keys())
    return [
        {
            "arm": first,
            "minus": second,
            "measure": name,
            **asdict(found),
            "n": len(measured.patients),
            "seeds": seeds,
            "seeds_note": _note_of_pair(first, second, seeds),
        }
        for name in DIFFERENCE_MEASURES
        if (found := difference_of(name, ours, paired)) is not None
    ]


def _note_of_pair(first: str, second: str, seeds: Sequence[int]) -> str | None:
    """Nothing where neither has seeds: no training of its own, or no language model."""
    is_trained = any(arm in ARMS and ARMS[arm].own_stage is not None for arm in (first, second))
    return seeds_note(len(seeds)) if is_trained else None


def _expert_answers(
    records: ExperimentRecords, measured: _Measured, labels: np.ndarray
) -> dict[str, Answered]:
    """Risks of the models that read the record, of the same patients."""
    table = records.expert_predictions
    if table is None:
        return {}
    found: dict[str, Answered] = {}
    for method in RECORD_METHODS:
        own = table[table["method"] == method]
        risks = dict(zip(own["patient_id"].astype(str), own["probability"], strict=True))
        if set(measured.patients) <= risks.keys():
            values = np.array([risks[patient] for patient in measured.patients], dtype=float)
            found[method] = _of_risks(values, records, measured, labels)
    return found


def _of_risks(
    risks: np.ndarray, records: ExperimentRecords, measured: _Measured, labels: np.ndarray
) -> Answered:
    pairs = zip(risks.tolist(), labels.tolist(), strict=True)
    rewards = [classification_reward(p, y, records.config.reward) for p, y in pairs]
    return Answered(
        labels=labels,
        probabilities=risks,
        resamples=measured.resamples,
        per_patient={"reward_cls": np.array(rewards)},
    )


def _references(
    records: ExperimentRecords,
    measured: _Measured,
    labels: np.ndarray,
    experts: Mapping[str, Answered],
) -> list[dict[str, Any]]:
    """What the numbers are read against, on the same patients."""
    rows = [
        {"name": method, "label": method_label(method), "measures": _existing(answers)}
        for method, answers in experts.items()
    ]

    def set_row(
        name: str, label: str, named: Sequence[frozenset[str]], truth: np.ndarray | None
    ) -> dict[str, Any]:
        of_names = {"reward_att": overlaps(named, measured.salient)}
        each = Answered(
            labels=labels,
            probabilities=labels.astype(float),  # names alone predict nothing: not shown
            resamples=measured.resamples,
            per_patient=of_names if truth is None else {**of_names, "truth_overlap": truth},
            named=[named],
            salient=measured.salient,
        )
        found = _existing(each)
        shown = {key: found[key] for key in (*each.per_patient, "reward_att_own") if key in found}
        return {"name": name, "label": label, "measures": shown}

    if measured.constant is None:
        return rows
    against_truth = None
    if records.truth is not None:
        truth = records.truth
        risks = np.array([truth.risks[patient] for patient in measured.patients])
        sets = [truth.salient[patient] for patient in measured.patients]
        of_truth = _existing(_of_risks(risks, records, measured, labels))
        rows.append({"name": "true_risk", "label": "True risk", "measures": of_truth})
        salience = overlaps(measured.salient, sets)
        label = "The expert's salient features"
        rows.append(set_row("expert_salience", label, measured.salient, salience))
        # A floor for each question: the constant that is best against the truth.
        best = constant_set(sets, measured.most_names).names
        against_truth = overlaps([best] * len(sets), sets)
    constants = [measured.constant.names] * len(measured.patients)
    rows.append(set_row("constant_set", "Best constant set", constants, against_truth))
    return rows


def _existing(answers: Answered) -> dict[str, Any]:
    found = _estimates([answers])
    return {name: value for name, value in found.items() if value is not None}


def _unfinished(unit: UnitRecords) -> dict[str, Any]:
    return {
        "arm": unit.arm,
        "label": arm_label(unit.arm),
        "seed": unit.seed,
        "stage": unit.stage,
        "state": unit.state,
        "steps": len(unit.steps),
        "planned_steps": unit.planned_steps,
        "seconds": round(sum(unit.seconds.values()), 1),
    }


def arm_label(arm: str) -> str:
    """What tables call an arm."""
    return "Untrained" if arm == "untrained" else method_label(arm)
