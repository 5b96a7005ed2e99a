"""What is known of a generated cohort: true risks, true salient features, and the best metrics.

No metric can be read without its ceiling: labels are drawn from the true risk, so that even the
true risk ranks some patients wrongly and is not quite calibrated on the labels that were drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ehr.catalogue import AGE_AND_SEX
from ehr.cohorts.cohort import Cohort
from ehr.cohorts.schema import CONTRIBUTION_PREFIX
from ehr.metrics import auprc, auroc, brier, calibration_intercept, calibration_slope, ece

_CEILINGS = {
    "auroc": auroc,
    "auprc": auprc,
    "brier": brier,
    "ece": ece,
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
}


def true_tokens(cohort: Cohort) -> tuple[str, ...]:
    """Names of the columns of `true_contributions`: those of an expert's scores."""
    return (*(feature.name for feature in cohort.features), AGE_AND_SEX)


def true_contributions(cohort: Cohort, ids: Sequence[str]) -> Float[np.ndarray, "patients tokens"]:
    """What every feature truly adds to the log-odds of these patients, age and sex last."""
    assert cohort.truth is not None, "only a generated cohort knows the truth"
    columns = [CONTRIBUTION_PREFIX + name for name in true_tokens(cohort)]
    return cohort.truth.set_index("patient_id").loc[list(ids), columns].to_numpy(float)


def true_risks(cohort: Cohort, ids: Sequence[str]) -> Float[np.ndarray, " patients"]:
    """The probabilities that the labels of these patients were drawn with."""
    assert cohort.truth is not None, "only a generated cohort knows the truth"
    return cohort.truth.set_index("patient_id").loc[list(ids), "true_risk"].to_numpy(float)


def true_sets(cohort: Cohort, ids: Sequence[str], size: int) -> list[frozenset[str]]:
    """The `size` features that add most to, or take most from, each patient's log-odds.

    As many as C_exp has, so that an expert without error agrees fully. Features that add nothing
    are never among them. With five they are the `salient` columns of the truth table.
    """
    contributions = np.abs(true_contributions(cohort, ids))
    tokens = true_tokens(cohort)
    order = np.argsort(-contributions, axis=1, kind="stable")[:, :size]
    return [
        frozenset(tokens[token] for token in row if sizes[token] > 0)
        for row, sizes in zip(order, contributions, strict=True)
    ]


def ceilings(cohort: Cohort, ids: Sequence[str]) -> dict[str, float | None]:
    """Metrics of the true risk on these patients' labels, as `METRIC_of_true_risk`."""
    labels = [cohort.labels[patient] for patient in ids]
    risks = true_risks(cohort, ids)
    return {f"{name}_of_true_risk": metric(labels, risks) for name, metric in _CEILINGS.items()}
