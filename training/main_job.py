"""The main job: cohort, expert, search, SFT, GRPO, evaluation and report, as stages of a run."""

import json
import logging
import time
from collections.abc import Collection
from pathlib import Path

from ehr.cohorts.cohort import save_cohort, summary
from ehr.cohorts.loaders import build_cohort
from ehr.errors import os_error_text
from ehr.whole_files import write_json
from services.environment import prepare_process
from training.config.run import RunConfig
from training.evaluation.feature_orders import FEATURE_ORDER_FILE
from training.evaluation.other_patients import (
    own_patients_sentence,
    read_other_cohort,
    require_another_cohort,
)
from training.evaluation.predictions import OTHER_COHORT_FILE, reading_text
from training.evaluation.selection import read_selection, selection_text
from training.evaluation.table import order_table, result_table
from training.expert.stage import train_the_expert
from training.grpo.stage import optimize_policy
from training.preflight import require_fitting_inputs
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display, OnProgress
from training.run.session import Session
from training.run.stages import STAGES, Stage, StageWork
from training.search.stage import search

logger = logging.getLogger(__name__)


def run_stages(config: RunConfig, run_dir: Path, target: str | None, redo: str | None) -> list[str]:
    """Runs what is missing up to `target` (None = everything); returns the results as lines."""
    prepare_process(config.run.verbose)
    display = Display()
    folder = RunFolder(run_dir)
    folder.create()
    with folder.lock(), Session(config, folder, display) as session:
        pipeline = Pipeline(STAGES, folder, config, display, lambda: session.model.content)
        todo = pipeline.check(target, redo)
        if todo:
            if any(stage.needs_cluster for stage in todo):
                session.require_cluster()
                _look_at_other_cohort(session, {stage.name for stage in todo})
            if redo is not None:
                pipeline.remove(redo)
            _describe(pipeline, todo, session)
            # Wrong data is said before Ray and the engine take their time to start.
            first = [stage for stage in todo if not stage.needs]
            later = [stage for stage in todo if stage.needs]
            page = GrowingReport(session)
            pipeline.run(first, WORK, session, page.write)
            require_fitting_inputs(session, [stage.name for stage in later])
            _start_early(session, later)
            pipeline.run(later, WORK, session, page.write)
    return _results(folder, config)


def _describe(pipeline: Pipeline, todo: list[Stage], session: Session) -> None:
    """Writes config.json, and says which settings of the command change nothing in this folder."""
    needs_model = any("model" in stage.sections for stage in todo)
    model = describe_model(session) if needs_model else None
    made = pipeline.described(todo)
    is_same_model = made.model == session.config.model
    session.folder.write_config(made, model if is_same_model else None)
    if kept := _unlike(made, session.config):
        session.display.say(
            f"config.json keeps what finished stages were made with, not this command's "
            f"{', '.join(kept[:5])}; stage.json of each stage has its own settings"
        )


def _unlike(made: RunConfig, asked: RunConfig) -> list[str]:
    """Settings of `asked` that `made` has otherwise, as arguments."""
    other = made.model_dump(mode="json")
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section, fields in asked.model_dump(mode="json").items()
        for key, value in fields.items()
        if other[section][key] != value
    ]


def _look_at_other_cohort(session: Session, todo: set[str]) -> None:
    """Refuses `evaluate.other_cohort` before anything is removed, trained or started for it."""
    if (other := read_other_cohort(session.config)) is None:
        return
    cohort = build_cohort(session.config.cohort) if "cohort" in todo else session.cohort
    require_another_cohort(cohort, other)


class GrowingReport:
    """Writes the report after every stage, so that there is something to look at early."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told = False

    def write(self) -> None:
        """Writes what there is; says where, once."""
        from training.report.page import write_report

        try:
            path = write_report(self._session.folder.path)
        except OSError as error:
            text = os_error_text(error, self._session.folder.path)
            self._session.display.say(f"the report could not be written yet: {text}")
            return
        except Exception:  # a page is not worth a run; the last stage writes it again and raises
            logger.exception("the report could not be written yet")
            return
        if not self._told:
            self._session.display.say(f"report, which grows with every stage: {path}")
            self._told = True


def describe_model(session: Session) -> dict[str, str]:
    """The language model, for config.json."""
    model, precision = session.model, session.precision
    return {
        "name": model.name,
        "source": model.source,
        "sha256": model.sha256,
        "description": model.description,
        "dtype": precision.parameter_type,
        "dtype_reason": precision.reason,
    }


def _start_early(session: Session, stages: Collection[Stage]) -> None:
    """Joins the cluster, and loads the engine while the first stages work: it takes as long."""
    names = {stage.name for stage in stages}
    if any(stage.needs_cluster for stage in stages):
        session.connect(names)
    if {"search", "grpo", "evaluate"} & names:
        session.deploy_generator()


def _results(folder: RunFolder, config: RunConfig) -> list[str]:
    lines = []
    if folder.stage("evaluate").done:
        rows = json.loads((folder.path / "evaluate" / "results.json").read_text())
        lines.append(result_table(rows))
        other = folder.path / "evaluate" / OTHER_COHORT_FILE
        if other.exists():
            found = json.loads(other.read_text())
            lines.append(f"on {found['cohort']['name']}, another test cohort:")
            lines += filter(None, [own_patients_sentence(found["cohort"])])
            lines.append(result_table(found["rows"]))
        orders = folder.path / "evaluate" / FEATURE_ORDER_FILE
        if orders.exists():
            lines.append("with features of the test prompts at other places:")
            lines.append(order_table(json.loads(orders.read_text())))
        readings = sorted({row["reading"] for row in rows if row.get("reading")})
        num = config.evaluate.num_samples
        how = "greedy" if num == 1 else f"mean of {num} samples"
        told = [
            f"answers in the {config.prompt.format} format, {how}",
            *map(reading_text, readings),
        ]
        lines.append("; ".join(told))
    selection = read_selection(folder.path / "grpo")
    if selection is not None and folder.stage("grpo").done:
        lines.append(selection_text(selection))
    if folder.stage("report").done:
        lines.append(f"report: {folder.path / 'report.html'}")
    return lines


def build(session: Session, on_progress: OnProgress) -> None:
    """Builds the cohort and its splits."""
    cohort = build_cohort(session.config.cohort)
    save_cohort(cohort, session.path("cohort"))
    write_json(session.path("cohort") / "summary.json", summary(cohort))
    counts = ", ".join(f"{split} {len(ids)}" for split, ids in cohort.splits.items())
    session.display.say(f"cohort: {cohort.name}, {cohort.task}, patients: {counts}")


def fine_tune(session: Session, on_progress: OnProgress) -> None:
    """Fine-tunes on the best trajectories of the search."""
    from training.sft.stages import fine_tune_on_trajectories

    fine_tune_on_trajectories(session, on_progress)


def fine_tune_directly(session: Session, on_progress: OnProgress) -> None:
    """Fine-tunes another adapter on direct predictions: the `sft` row."""
    from training.sft.stages import fine_tune_on_predictions

    fine_tune_on_predictions(session, on_progress)


def evaluate(session: Session, on_progress: OnProgress) -> None:
    """Asks every method about the test patients, then computes metrics."""
    from training.evaluation.stage import evaluate_methods

    evaluate_methods(session, on_progress)


def report(session: Session, on_progress: OnProgress) -> None:
    """Writes the report page."""
    from training.report.page import write_report

    write_report(session.folder.path)


def serve(config: RunConfig, run_dir: Path) -> None:
    """Keeps the expert's HTTP endpoint up until the process is interrupted."""
    run_stages(config, run_dir, target="expert", redo=None)
    display = Display()
    folder = RunFolder(run_dir)
    with folder.lock(), Session(config, folder, display) as session:
        address = session.start_http()
        display.say(f"serving POST {address}/v1/expert/attention, described at {address}/docs")
        display.say("Ctrl-C stops it")
        while True:
            time.sleep(3600)


WORK: dict[str, StageWork] = {
    "cohort": build,
    "expert": train_the_expert,
    "search": search,
    "sft": fine_tune,
    "grpo": optimize_policy,
    "direct_sft": fine_tune_directly,
    "evaluate": evaluate,
    "report": report,
}
"""What each stage of `training.run.stages.STAGES` does."""
