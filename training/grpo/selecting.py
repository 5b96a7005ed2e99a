"""The end of Stage 2 with `grpo.select: validation`: steps' policies are asked, one is kept."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import pandas as pd

from ehr.whole_files import write_json
from services.types import PolicyVersion
from training.evaluation.answers import AnswerParser
from training.evaluation.asking import (
    AnswerLimits,
    Question,
    ask_policy,
    kept_or_made,
)
from training.evaluation.selection import (
    SELECTION_FILE,
    StepScore,
    candidate_steps,
    choose_step,
    is_pooled,
    step_score,
)
from training.grpo.train import keep_policy
from training.learner.checkpoints import PolicyFolder
from training.learner.trained_policy import TrainedPolicy, serve_trained
from training.run.progress import OnProgress
from training.run.session import Session


def select_policy(session: Session, on_progress: OnProgress) -> None:
    """Asks the committed policies about the validation patients and keeps the best one.

    Writes `selection.json` and makes that policy the stage's adapter; answers are kept step by step
    in `selection/`, so that an interrupted choice goes on.
    """
    config, folder = session.config, session.path("grpo")
    patients = list(session.cohort.splits["val"])
    labels = [session.cohort.labels[patient] for patient in patients]
    reader = AnswerParser(
        cohort=session.cohort, matcher=session.matcher, salient=session.salient(patients)
    )
    steps = candidate_steps(config.grpo)
    curve: list[StepScore] = []
    for place, step in enumerate(steps):
        on_progress(place, len(steps), f"validation patients, policy of step {step}")
        table = kept_or_made(
            folder / "selection" / f"step_{step}.parquet",
            partial(_answers_of, session, reader, step, patients),
        )
        section = config.grpo
        curve.append(
            step_score(step, table, config.reward, session.matcher, section.accuracy_weight)
        )
    pooled = is_pooled(labels)
    choice = choose_step(curve, pooled=pooled)
    keep_policy(folder, choice.step)
    write_json(
        folder / SELECTION_FILE,
        {
            "step": choice.step,
            "metric": "auroc",
            "pooled": pooled,
            "num_patients": len(labels),
            "num_positives": sum(labels),
            "curve": [
                {**asdict(each), "score": score}
                for each, score in zip(curve, choice.scores, strict=True)
            ],
        },
    )


def _answers_of(
    session: Session, reader: AnswerParser, step: int, patients: Sequence[str]
) -> pd.DataFrame:
    config = session.config
    stage = session.path("grpo")
    policy = TrainedPolicy(
        version=PolicyVersion(lineage=session.lineage("validated grpo"), version=step),
        adapter=PolicyFolder(stage / "policies").adapter_folder(step),
        stage=stage,
    )
    question = Question(
        kind=config.prompt.kind,
        shown=session.case_prompts(patients, config.prompt.kind),
        cohort=session.cohort,
        limits=AnswerLimits(
            num_samples=1,
            max_depth=config.grpo.max_depth,
            max_new_tokens=config.grpo.max_new_tokens,
            seed=config.grpo.seed,
        ),
    )
    least = serve_trained(session, policy, f"step {step}", stage)
    return reader.rows(f"step {step}", ask_policy(session, least, question, lambda done: None))
