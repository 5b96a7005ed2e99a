"""What a run's settings need of its cohort and its model, asked before any long stage."""

from collections.abc import Collection

from ehr.cohorts.cohort import Cohort
from ehr.errors import ConfigurationError
from services.model_limits import require_fitting_model
from training.config.checks import is_available
from training.config.run import RunConfig
from training.grpo.patients import require_patients
from training.run.session import Session


def require_fitting_inputs(session: Session, stages: Collection[str]) -> None:
    """Compares the configuration with the cohort and the model that it is about to work on.

    Args:
        session: of the run; its cohort is in its folder.
        stages: names of those that are to run.

    Raises:
        ConfigurationError: if a setting asks for more than there is; names both.
        DataError: if the training patients are too few for a step, or lack a class.
        ModelError: if the model is not on this machine.
    """
    config = session.config
    if not stages:
        return
    require_fitting_cohort(config, session.cohort, stages)
    if "search" in stages:
        _tell_fewer_searched(session)
    if "evaluate" in stages:
        _tell_rows_left_out(session)
    if {"search", "sft", "grpo", "direct_sft", "evaluate"} & set(stages):
        require_fitting_model(session.model.path, config.model, config.generator)


def require_fitting_cohort(config: RunConfig, cohort: Cohort, stages: Collection[str]) -> None:
    """Compares the settings of some stages with the cohort; raises as `require_fitting_inputs`."""
    # torch, which stages without training do without
    from training.sft.predictions import choose_predictions

    num_features = len(cohort.features)
    if "expert" in stages and config.expert.num_salient_features > num_features:
        raise ConfigurationError(
            f"expert.num_salient_features is {config.expert.num_salient_features}, more than the "
            f"{num_features} features of cohort.source={config.cohort.source} "
            f"(cohort.features={config.cohort.features}); lower it"
        )
    if "grpo" in stages:
        require_patients(cohort, config)
    if "direct_sft" in stages:
        choose_predictions(cohort, config.direct_sft)
    if "evaluate" in stages:
        _require_test_patients(config, cohort)


def _require_test_patients(config: RunConfig, cohort: Cohort) -> None:
    num, found = config.evaluate.num_patients, len(cohort.splits["test"])
    if num is not None and num > found:
        raise ConfigurationError(
            f"evaluate.num_patients is {num}, but the test split has {found} patients "
            f"(cohort.source={config.cohort.source}, cohort.test_fraction); lower it, or set it to "
            "null for all of them"
        )


def _tell_fewer_searched(session: Session) -> None:
    search = session.config.search
    num, found = search.num_patients, len(session.cohort.splits[search.split])
    if num is not None and num > found:
        session.display.say(
            f"search.num_patients is {num}, but the {search.split} split has {found} patients: all "
            "of them are searched"
        )


def _tell_rows_left_out(session: Session) -> None:
    config = session.config
    if left_out := [row for row in config.evaluate.methods if not is_available(row, config)]:
        session.display.say(
            f"evaluate.methods: {', '.join(left_out)} left out, since sft.enabled or grpo.enabled "
            "is false"
        )
