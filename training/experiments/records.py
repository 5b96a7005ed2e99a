"""What an experiment's run folder holds: units, finished or not, and what they are compared with.

Everything is read as it lies there, while units are missing or running; what cannot be read is
named instead of stopping the reader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ehr.cohorts.cohort import load_cohort
from ehr.cohorts.truth import true_risks, true_sets
from ehr.errors import EagRlError
from ehr.tables import rows
from training.config.run import RunConfig
from training.evaluation.methods import RECORD_METHODS
from training.evaluation.predictions import OTHER_COHORT_FILE, PREDICTION_COLUMNS, reading_of
from training.experiments.arms import ARMS, Unit, units_of
from training.readable import finite_number
from training.report.records import EXPERT_PREDICTION_COLUMNS
from training.run.files import RunFiles, as_object
from training.run.folder import RunFolder

OWN_STAGES = ("grpo", "direct_sft", "evaluate")
"""Stages that a unit may have of its own, in the order in which it takes them."""

_OTHER_PREDICTIONS = "evaluate/other_cohort_predictions.parquet"

FAITHFULNESS_COLUMNS = (
    "patient_id",
    "original",
    "without_named",
    "without_unnamed",
    "unjudged",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecords:
    """One arm with one seed, as far as it has come."""

    arm: str
    seed: int
    stage: str | None
    """The last of its own stages that began; None = none has."""
    state: str
    """Of that stage: `running` (also after a stop) or `done`; `not begun` before any."""
    is_finished: bool
    """Its evaluation is done; only then does it enter a result."""
    steps: Sequence[Mapping[str, Any]] = ()
    """Lines of its training's `metrics.jsonl`."""
    planned_steps: int | None = None
    """Steps of its training by its configuration; None = it has none, or they depend on data."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of its own stages, all attempts."""
    predictions: pd.DataFrame | None = None
    """Its answers, with `PREDICTION_COLUMNS`; None before the evaluation is done."""
    faithfulness: pd.DataFrame | None = None
    """Its answers with a feature deleted, where they were asked for."""
    other_predictions: pd.DataFrame | None = None
    """Its answers about `evaluate.other_cohort`, where there is one, and those of the models of the
    record, which are every unit's."""

    @property
    def name(self) -> str:
        """Its folder below RUN/arms."""
        return f"{self.arm}/seed-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is known of the patients of a generated cohort."""

    risks: Mapping[str, float]
    """The probability that each test patient's label was drawn with."""
    salient: Mapping[str, frozenset[str]]
    """The features that truly carry it, as many as C_exp has at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecords:
    """Everything of an experiment that its results need."""

    record: Mapping[str, Any]
    """`config.json` of the run."""
    config: RunConfig
    units: Sequence[UnitRecords]
    """Planned ones and those found, by arm in the order of `ARMS`, then seed."""
    expert_predictions: pd.DataFrame | None = None
    """Risks of the models that read the record, of the test patients."""
    truth: Truth | None = None
    num_train_patients: int | None = None
    """None = the cohort's summary is not there, or cannot be read."""
    num_train_positives: int | None = None
    """Of the training patients; None as above."""
    other_cohort: Mapping[str, Any] | None = None
    """`other_cohort.json` of a unit; None where there is none, or it cannot be read."""
    problems: tuple[str, ...] = ()
    """One sentence for each file that exists and cannot be read."""

    @property
    def train_rate(self) -> float | None:
        """Share of positives among the training patients; None = they are not known."""
        if not self.num_train_patients or self.num_train_positives is None:
            return None
        return self.num_train_positives / self.num_train_patients

    @property
    def reading(self) -> str:
        """How risks were read (`evaluate.reading`)."""
        tables = [unit.predictions for unit in self.units if unit.predictions is not None]
        return reading_of(tables[0]) if tables else self.config.risk_reading

    def on_other_cohort(self) -> "ExperimentRecords | None":
        """The experiment with the other cohort's test patients in the place of its own.

        Nothing is known of their true risks, none of them were trained on, and no expert of theirs
        was trained: answers have no R_att. None where no unit was asked about another cohort.
        """
        asked = [each for unit in self.units if (each := unit.other_predictions) is not None]
        if not asked:
            return None
        units = [
            replace(
                unit,
                predictions=None
                if (each := unit.other_predictions) is None
                else _of(each, is_record=False),
                faithfulness=None,
            )
            for unit in self.units
        ]
        return replace(
            self,
            units=units,
            expert_predictions=_of(asked[0], is_record=True),
            truth=None,
            num_train_patients=None,
            num_train_positives=None,
        )


def collect(run_dir: Path) -> ExperimentRecords:
    """Reads an experiment's run folder.

    Raises:
        RunFolderError: if the folder has no configuration of this release.
    """
    config = RunFolder(run_dir).read_config()
    reader = RunFiles(run_dir)
    expert = reader.table("expert/predictions.parquet", EXPERT_PREDICTION_COLUMNS)
    truth = _truth(run_dir, config, reader.problems)
    num_patients, num_positives = _train_counts(reader)
    units = [_unit(reader, config, arm, seed) for arm, seed in _planned_and_found(run_dir, config)]
    return ExperimentRecords(
        record=reader.json_object("config.json") or {},
        config=config,
        units=units,
        expert_predictions=None if expert is None else rows(expert, expert["split"] == "test"),
        truth=truth,
        num_train_patients=num_patients,
        num_train_positives=num_positives,
        other_cohort=_other_cohort(reader, units),
        problems=tuple(reader.problems),
    )


def found_units(run_dir: Path) -> list[Unit]:
    """Units below RUN/arms that have begun a stage, by arm in the order of `ARMS`, then seed."""
    found = [
        Unit(arm=ARMS[folder.parent.name], seed=int(seed))
        for folder in (run_dir / "arms").glob("*/seed-*")
        if (seed := folder.name.removeprefix("seed-")).isdecimal()
        and folder.parent.name in ARMS
        and any((folder / stage / "stage.json").exists() for stage in OWN_STAGES)
    ]
    order = list(ARMS)
    return sorted(found, key=lambda unit: (order.index(unit.arm.name), unit.seed))


def _planned_and_found(run_dir: Path, config: RunConfig) -> list[tuple[str, int]]:
    found = found_units(run_dir)
    names = {(unit.arm.name, unit.seed) for unit in (*found, *units_of(config, found))}
    order = list(ARMS)
    return sorted(names, key=lambda name: (order.index(name[0]), name[1]))


def _unit(reader: RunFiles, config: RunConfig, arm: str, seed: int) -> UnitRecords:
    place = f"arms/{arm}/seed-{seed}"
    records = {
        stage: record
        for stage in OWN_STAGES
        if (record := reader.json_object(f"{place}/{stage}/stage.json")) is not None
    }
    last = next((stage for stage in reversed(OWN_STAGES) if stage in records), None)
    is_done = records.get("evaluate", {}).get("state") == "done"
    predictions = faithfulness = other = None
    if is_done:
        predictions = reader.table(f"{place}/evaluate/predictions.parquet", PREDICTION_COLUMNS)
        name = f"{place}/evaluate/faithfulness.parquet"
        faithfulness = reader.table(name, FAITHFULNESS_COLUMNS)
        methods = set() if predictions is None else set(predictions["method"])
        if len(methods) > 1:
            reader.problems.append(
                f"{place}/evaluate/predictions.parquet holds the methods {sorted(methods)[:5]}; "
                "a unit has one."
            )
            predictions = None
        other = reader.table(f"{place}/{_OTHER_PREDICTIONS}", PREDICTION_COLUMNS)
    training = ARMS[arm].own_stage
    return UnitRecords(
        arm=arm,
        seed=seed,
        stage=last,
        state="not begun" if last is None else str(records[last].get("state")),
        is_finished=predictions is not None,
        steps=() if training is None else reader.json_lines(f"{place}/{training}/metrics.jsonl"),
        planned_steps=config.grpo.steps if training == "grpo" else None,
        seconds={
            stage: seconds
            for stage, record in records.items()
            if (seconds := finite_number(record.get("seconds"))) is not None
        },
        predictions=predictions,
        faithfulness=faithfulness,
        other_predictions=other,
    )


def _other_cohort(reader: RunFiles, units: Sequence[UnitRecords]) -> Mapping[str, Any] | None:
    """What a unit wrote about the other cohort: all units' alike."""
    asked = next((unit for unit in units if unit.other_predictions is not None), None)
    if asked is None:
        return None
    return reader.json_object(f"arms/{asked.name}/evaluate/{OTHER_COHORT_FILE}")


def _of(predictions: pd.DataFrame, *, is_record: bool) -> pd.DataFrame:
    """Rows of the models that read the record, or those of the language model."""
    return rows(predictions, predictions["method"].isin(RECORD_METHODS) == is_record)


def _truth(run_dir: Path, config: RunConfig, problems: list[str]) -> Truth | None:
    if not (run_dir / "cohort" / "truth.parquet").is_file():
        return None
    try:
        cohort = load_cohort(run_dir / "cohort")
    except EagRlError as error:
        problems.append(f"the cohort cannot be read: {error}")
        return None
    patients = list(cohort.splits.get("test", ()))
    if cohort.truth is None or not patients:
        return None
    sets = true_sets(cohort, patients, config.expert.num_salient_features)
    return Truth(
        risks=dict(zip(patients, true_risks(cohort, patients).tolist(), strict=True)),
        salient=dict(zip(patients, sets, strict=True)),
    )


def _train_counts(reader: RunFiles) -> tuple[int | None, int | None]:
    """Training patients and the positives among them, both or neither."""
    summary = as_object(reader.json_object("cohort/summary.json"))
    train = as_object(as_object(summary.get("splits")).get("train"))
    num_patients = finite_number(train.get("patients"))
    num_positives = finite_number(train.get("positives"))
    if num_patients is None or num_positives is None:
        return None, None
    return int(num_patients), int(num_positives)


def model_description(records: ExperimentRecords) -> str:
    """The language model and what its weights were made from."""
    model = as_object(records.record.get("model"))
    name = str(model.get("description") or model.get("name") or records.config.model.name)
    return f"{name}; computed in {model['dtype']}" if "dtype" in model else name
