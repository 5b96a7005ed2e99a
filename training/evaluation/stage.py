"""The evaluate stage: every method asked about the test patients, and the result table."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from ehr.cohorts.cohort import choose_patients
from ehr.whole_files import write_json
from training.config.checks import is_available
from training.evaluation.answers import NAMING_KINDS, AnswerParser
from training.evaluation.asking import Asker, kept_or_made
from training.evaluation.feature_orders import FeatureOrders
from training.evaluation.masking import faithfulness_summary, masked_rows
from training.evaluation.methods import EXPERT_METHODS
from training.evaluation.other_cohort import OtherCohort
from training.evaluation.predictions import concatenate, expert_rows
from training.evaluation.results import difference_rows, result_rows
from training.evaluation.selection import read_selection
from training.run.progress import OnProgress
from training.run.session import Session


def evaluate_methods(session: Session, on_progress: OnProgress) -> None:
    """Asks every method about the test patients, then computes metrics."""
    config = session.config
    section = config.evaluate
    folder = session.path("evaluate")
    patients = choose_patients(
        session.cohort, "test", section.num_patients, section.balance, section.seed
    )
    reader = AnswerParser(
        cohort=session.cohort, matcher=session.matcher, salient=session.salient(patients)
    )
    other = None if section.other_cohort is None else OtherCohort(session)
    orders = FeatureOrders(session, reader, patients)
    num_asked = len(patients) * (1 + len(orders.orders))
    num_asked += len(other.patients) if other is not None else 0
    stored = pd.read_parquet(session.path("expert") / "predictions.parquet")
    tables: list[pd.DataFrame] = []
    masked: list[pd.DataFrame] = []
    asked = [method for method in section.methods if is_available(method, config)]
    for place, method in enumerate(asked):
        name = config.grpo.method if method == "stage2" else method

        def tell(done: int, before: int = place * num_asked, text: str = name) -> None:
            on_progress(before + done, len(asked) * num_asked, text)

        tell(0)
        if method in EXPERT_METHODS:
            tables.append(expert_rows(method, stored))
            continue
        asker = Asker(session, method)
        tables.append(
            kept_or_made(
                folder / "parts" / f"{name}.parquet",
                partial(_answer_rows, reader, name, asker, patients, tell),
            )
        )
        if section.faithfulness_patients and asker.kind in NAMING_KINDS:
            masked.append(
                kept_or_made(
                    folder / "parts" / f"{name}.masked.parquet",
                    partial(_masked_rows, session, reader, tables[-1], asker, patients),
                )
            )
        # while the policy is served
        orders.ask(name, tables[-1], asker, lambda done, tell=tell: tell(len(patients) + done))
        if other is not None:
            before = len(patients) * (1 + len(orders.orders))
            other.ask(name, asker, lambda done, tell=tell, before=before: tell(before + done))
    _write_results(session, concatenate(tables), masked)
    if section.feature_order_shuffle:
        orders.write()
    if other is not None:
        on_progress(len(asked) * num_asked, len(asked) * num_asked, "models of the record")
        other.write()
    shutil.rmtree(folder / "parts", ignore_errors=True)


def _write_results(
    session: Session, predictions: pd.DataFrame, masked: Sequence[pd.DataFrame]
) -> None:
    """Predictions, paired differences and the result table."""
    config, folder = session.config, session.path("evaluate")
    resamples, seed = config.evaluate.num_resamples, config.evaluate.seed
    faithfulness: dict[str, dict[str, Any]] = {}
    if masked:
        rows = concatenate(masked)
        rows.to_parquet(folder / "faithfulness.parquet")
        faithfulness = faithfulness_summary(rows, resamples, seed)
    predictions.to_parquet(folder / "predictions.parquet")
    write_json(
        folder / "differences.json",
        difference_rows(predictions, config.grpo.method, resamples, seed),
    )
    results = result_rows(
        predictions, config.expert.num_salient_features, resamples, seed, faithfulness
    )
    selection = read_selection(session.path("grpo")) if config.grpo.enabled else None
    for row in results:
        if selection is not None and row["method"] == config.grpo.method:
            row["selected_step"] = selection["step"]
    write_json(folder / "results.json", results)


def _answer_rows(
    reader: AnswerParser,
    name: str,
    asker: Asker,
    patients: list[str],
    tell: Callable[[int], None],
) -> pd.DataFrame:
    return reader.rows(name, asker.patients(patients, tell))


def _masked_rows(
    session: Session,
    reader: AnswerParser,
    original: pd.DataFrame,
    asker: Asker,
    patients: list[str],
) -> pd.DataFrame:
    """The first patients again, without a feature that the answer names and without another."""
    section = session.config.evaluate
    first = patients[: section.faithfulness_patients]
    prompts = session.case_prompts(first, asker.kind)
    shown = {patient: prompt.case for patient, prompt in prompts.items()}
    return masked_rows(reader, original, shown, asker.cases, section.seed)
