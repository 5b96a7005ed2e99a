"""What Stage 2 rewards: labels and salience of its patients, and the reward section as it uses it.

One place for the stage itself, for `eag-rl export` and for the reward as a callable, so that other
trainers are paid what the run was. What comes after a reward belongs to the advantage and is not
here: `grpo.scale_parts`, `grpo.advantage_scale` and `grpo.credit` (`training.grpo.advantages`).
"""

import random
from collections.abc import Mapping

from ehr.cohorts.cohort import Cohort
from ehr.config import RewardSection
from ehr.rewards import RewardContext, Salience
from ehr.salience.table import weighed_by_rarity
from training.config.run import RunConfig


def reward_section(config: RunConfig) -> RewardSection:
    """The reward of Stage 2: `reward`, with what `grpo` overrides in it."""
    changes: dict[str, object] = {}
    if config.grpo.accuracy_weight is not None:
        changes["accuracy_weight"] = config.grpo.accuracy_weight
    if config.grpo.rare_features:
        changes["attention_weighting"] = "stability"  # of weights that `rewarded` puts there
    return config.reward.model_copy(update=changes)


def rewarded(salience: Mapping[str, Salience], config: RunConfig) -> dict[str, Salience]:
    """The salience that Stage 2 rewards, where `grpo` changes it.

    Another patient's C_exp comes with its weights. Rarity is counted over all patients given,
    whom shuffling leaves as they are.

    Args:
        salience: of all training patients, as the expert stored it.
        config: of the run.
    """
    changed = dict(salience)
    if config.grpo.shuffle_salience:
        changed = _shuffled(changed, config.grpo.seed)
    return weighed_by_rarity(changed) if config.grpo.rare_features else changed


def reward_contexts(
    cohort: Cohort, salience: Mapping[str, Salience], config: RunConfig
) -> dict[str, RewardContext]:
    """What the reward of Stage 2 sees of every training patient.

    Args:
        cohort: has the labels.
        salience: of all its training patients, as the expert stored it.
        config: of the run.
    """
    return {
        patient: RewardContext(
            patient_id=patient,
            label=cohort.labels[patient],
            salient_features=each.features,
            stability=each.stability,
        )
        for patient, each in rewarded(salience, config).items()
    }


def _shuffled(salience: Mapping[str, Salience], seed: int) -> dict[str, Salience]:
    """Every patient gets another patient's salience: the marginals stay."""
    patients = sorted(salience)
    order = list(patients)
    random.Random(seed).shuffle(order)
    # One cycle through the shuffled order: nobody keeps their own.
    return {
        patient: salience[other]
        for patient, other in zip(order, [*order[1:], order[0]], strict=True)
    }
