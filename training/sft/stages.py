"""The two stages of supervised fine-tuning: what each trains on, from the run folder."""

import pandas as pd

from ehr import tables
from ehr.errors import TrainingError
from training.config.sft import FineTuneSection
from training.learner.canary import canary_of
from training.run.progress import OnProgress
from training.run.session import Session
from training.sft.held_out import hold_out
from training.sft.inputs import SftExample, SftInputs
from training.sft.predictions import (
    choose_held_out,
    choose_predictions,
    direct_answers,
    prediction_examples,
)
from training.sft.train import train_sft


def fine_tune_on_trajectories(session: Session, on_progress: OnProgress) -> None:
    """Fine-tunes on the best trajectories of the search."""
    table = pd.read_parquet(session.path("search") / "trajectories.parquet")
    if set(table["value_kind"]) - {"reward"}:
        raise TrainingError(
            "expected trajectories of a rewarded search, those in search/trajectories.parquet are "
            "label-free, for inference only; search with search.value=reward (--redo search)"
        )
    kept = tables.rows(table, table["kept"])
    if not len(kept):
        raise TrainingError(
            f"the search kept none of its {len(table)} trajectories: nothing to fine-tune on; "
            "search more patients (search.num_patients), or skip Stage 1 (sft.enabled=false)"
        )
    examples = tuple(
        SftExample(
            patient_id=str(patient),
            prompt_token_ids=tuple(rows["prompt_token_ids"].iloc[0]),
            responses=tuple(tuple(ids) for ids in rows["token_ids"]),
            model_written=tuple(tuple(map(bool, mask)) for mask in rows["model_written"]),
        )
        for patient, rows in kept.groupby("patient_id", sort=True)
    )
    trained, held_out = hold_out(examples, session.config.sft)
    session.connect()
    train_sft(_inputs(session, "sft", session.config.sft, trained, held_out), on_progress)


def fine_tune_on_predictions(session: Session, on_progress: OnProgress) -> None:
    """Fine-tunes another adapter on direct predictions: the `sft` row."""
    section = session.config.direct_sft
    answers = direct_answers(session.tokenizer, session.config.prompt.format)
    chosen = choose_predictions(session.cohort, section), choose_held_out(session.cohort, section)
    on_progress(0, 1, "writing prompts")
    trained, held_out = (
        prediction_examples(
            patients,
            {p.patient_id: p.token_ids for p in session.prompts(set(patients), "vanilla")},
            session.cohort.labels,
            answers,
        )
        for patients in chosen
    )
    session.connect()
    train_sft(_inputs(session, "direct_sft", section, trained, held_out), on_progress)


def _inputs(
    session: Session,
    stage: str,
    section: FineTuneSection,
    examples: tuple[SftExample, ...],
    held_out: tuple[SftExample, ...],
) -> SftInputs:
    return SftInputs(
        run_id=session.folder.run_id,
        stage=stage,
        examples=examples,
        held_out=held_out,
        model_path=session.model.path,
        dtype=session.precision.parameter_type,
        served_merged=session.config.generator.merges_policies,
        learner=session.config.learner,
        sft=section,
        canary=canary_of(examples[0].prompt_token_ids, session.tokenizer),
        out_dir=session.path(stage),
        storage=session.train_storage,
    )
