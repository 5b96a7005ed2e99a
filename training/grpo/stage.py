"""The stage of Stage 2: its inputs from the run folder, training, and the choice of a step."""

from typing import TYPE_CHECKING

import pandas as pd

from ehr.language.prompts import PromptContext
from training.evaluation.selection import read_selection, selection_text
from training.grpo.patients import require_patients
from training.learner.canary import canary_of
from training.rewarded import reward_contexts, reward_section
from training.run.progress import OnProgress
from training.run.session import Session

if TYPE_CHECKING:
    from training.grpo.inputs import GrpoInputs


def optimize_policy(session: Session, on_progress: OnProgress) -> None:
    """Trains the policy on its own rollouts, rewarded with the expert's attention."""
    from training.grpo.selecting import select_policy
    from training.grpo.train import train_grpo

    config = session.config
    require_patients(session.cohort, config)
    session.start_generator()
    selects = config.grpo.select == "validation"
    if not (selects and (session.path("grpo") / "adapter").exists()):  # else: trained, not chosen
        train_grpo(_grpo_inputs(session), on_progress)
    if selects:
        select_policy(session, on_progress)
        session.stop_rollout_actor()
        session.display.say(selection_text(read_selection(session.path("grpo")) or {}))


def _grpo_inputs(session: Session) -> "GrpoInputs":
    from training.grpo.inputs import GrpoInputs
    from training.grpo.patients import GrpoPatient

    config = session.config
    train = session.cohort.splits["train"]
    contexts = reward_contexts(session.cohort, session.salience(train), config)
    in_stage1: set[str] = set()
    if config.sft.enabled:
        table = pd.read_parquet(session.path("search") / "trajectories.parquet")
        in_stage1 = set(table.loc[table["kept"], "patient_id"].astype(str))
    patients = tuple(
        GrpoPatient(
            prompt_token_ids=prompt.token_ids,
            context=contexts[prompt.patient_id],
            in_stage1=prompt.patient_id in in_stage1,
        )
        for prompt in session.prompts(train, config.prompt.kind)
    )
    return GrpoInputs(
        run_id=session.folder.run_id,
        lineage=session.lineage("grpo"),
        model_path=session.model.path,
        dtype=session.precision.parameter_type,
        served_merged=config.generator.merges_policies,
        patients=patients,
        features=session.cohort.features,
        num_salient_features=config.expert.num_salient_features,
        format=config.prompt.format,
        kind=config.prompt.kind,
        feature_names=PromptContext.of(session.cohort, config.prompt).listed_names,
        learner=config.learner,
        grpo=config.grpo,
        reward=reward_section(config),
        stage1_adapter=session.path("sft") / "adapter" if config.sft.enabled else None,
        canary=canary_of(patients[0].prompt_token_ids, session.tokenizer),
        cache_tokens=session.cache_tokens,
        out_dir=session.path("grpo"),
        storage=session.train_storage,
        make_generator=session.make_generator(),
        make_tokenizer=session.make_tokenizer(),
    )
