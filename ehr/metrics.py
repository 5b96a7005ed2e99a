"""Discrimination and calibration with patient-level bootstrap intervals, and excess Jaccard.

A value that does not exist (one class only, perfect separation) is None, never NaN: results are
written as JSON.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import root_scalar
from scipy.special import expit, logit, ndtr, ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehr.errors import DataError

__all__ = [
    "Bootstrap",
    "Labels",
    "Metric",
    "PairedDifference",
    "Probabilities",
    "auprc",
    "auroc",
    "bootstrap",
    "bootstrap_interval",
    "bootstrap_mean",
    "brier",
    "calibration_intercept",
    "calibration_slope",
    "ece",
    "paired_difference",
    "performance",
]

NUM_CALIBRATION_BINS = 10
"""Equal-width bins of the expected calibration error."""

PAPER_NUM_RESAMPLES = 100
"""Bootstrap resamples behind the paper's mean +- standard deviation."""

TEST_LEVEL = 0.05
"""Two-sided level at which a paired difference counts as found."""

TEST_POWER = 0.80
"""Chance of finding a difference of the minimal detectable size."""

_LOGIT_MARGIN = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logit is taken."""

_BLOCK_VALUES = 2_000_000
"""Resampled values held at once (16 MB a table)."""

Labels = Sequence[int] | Int[np.ndarray, " patients"]
"""0 or 1 of each patient."""
Probabilities = Sequence[float] | Float[np.ndarray, " patients"]
"""Probability of 1 of each patient, in the same order."""


class Metric(StrEnum):
    """Metrics that can be resampled; the values name them in result files."""

    AUROC = "auroc"
    """Area under the receiver operating characteristic."""
    AUPRC = "auprc"
    """Average precision."""
    BRIER = "brier"
    """Mean squared error of the probability."""
    ECE = "ece"
    """Expected calibration error over equal-width bins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bootstrap:
    """A metric, or a difference of two, on resampled patients."""

    values: Float[np.ndarray, " resamples"]
    """One value per resample that has both classes."""
    num_skipped: int
    """Resamples with one class only, for which a ranking metric does not exist."""

    def interval(self, level: float = 0.95) -> tuple[float | None, float | None]:
        """Percentile interval; (None, None) if every resample was skipped."""
        if not len(self.values):
            return None, None
        tail = 50 * (1 - level)
        low, high = np.percentile(self.values, [tail, 100 - tail])
        return float(low), float(high)

    def mean_and_sd(self) -> tuple[float | None, float | None]:
        """Mean and standard deviation, the paper's form; None where they do not exist."""
        if not len(self.values):
            return None, None
        sd = float(self.values.std(ddof=1)) if len(self.values) > 1 else None
        return float(self.values.mean()), sd

    def minimal_detectable(self) -> float | None:
        """Smallest true value that a two-sided 5 % test against 0 finds with 80 % power.

        (z(1 - level / 2) + z(power)) * SE = 2.80 SE, with the standard error from the resamples:
        H. S. Bloom, Minimum detectable effects, Evaluation Review 19(5), 1995. None where the
        resamples do not vary: two equal methods say nothing about what could have been found.
        """
        _, standard_error = self.mean_and_sd()
        if not standard_error:
            return None
        return float((ndtri(1 - TEST_LEVEL / 2) + ndtri(TEST_POWER)) * standard_error)

    def p_value(self, value: float | None) -> float | None:
        """Two-sided p-value of the value against 0, normal with the resamples' deviation.

        1 where nothing differs at all; None where the value or its deviation does not exist.
        """
        _, standard_error = self.mean_and_sd()
        if value is None or standard_error is None:
            return None
        if not standard_error:
            return 1.0 if value == 0 else None
        return float(2 * ndtr(-abs(value) / standard_error))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """First method minus second method on the same patients."""

    difference: float | None
    low: float | None
    high: float | None
    minimal_detectable: float | None
    """Smallest true difference that so many patients show with 80 % power (two-sided 5 %)."""
    p: float | None
    """Two-sided, against no difference; for this comparison alone."""
    num_skipped: int


def auroc(labels: Labels, probabilities: Probabilities) -> float | None:
    """Area under the ROC curve; None if only one class is present."""
    y, p = checked(labels, probabilities)
    return float(roc_auc_score(y, p)) if _has_both(y) else None


def auprc(labels: Labels, probabilities: Probabilities) -> float | None:
    """Average precision; None if only one class is present."""
    y, p = checked(labels, probabilities)
    return float(average_precision_score(y, p)) if _has_both(y) else None


def brier(labels: Labels, probabilities: Probabilities) -> float:
    """Mean squared difference of probability and outcome."""
    y, p = checked(labels, probabilities)
    return float(brier_score_loss(y, p, pos_label=1))


def ece(labels: Labels, probabilities: Probabilities) -> float:
    """Expected calibration error: bin-weighted |event rate - mean probability|."""
    y, p = checked(labels, probabilities)
    return float(_ece_resampled(y, p, np.ones((1, len(y))))[0])


def calibration_slope(labels: Labels, probabilities: Probabilities) -> float | None:
    """Slope of the outcome's log-odds on the predicted log-odds; 1 is ideal, below 1 overfitted.

    None with one class, one distinct probability, or classes that the probability separates.
    """
    y, p = checked(labels, probabilities)
    if not _has_both(y) or _separates(y, p):
        return None
    # C = inf: the slope is a maximum-likelihood estimate, without a penalty.
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(_logit(p)[:, None], y)
    return float(model.coef_[0, 0])


def calibration_intercept(labels: Labels, probabilities: Probabilities) -> float | None:
    """Calibration in the large: shift of the log-odds that meets the event rate; 0 is ideal.

    None with one class.
    """
    y, p = checked(labels, probabilities)
    if not _has_both(y):
        return None
    log_odds = _logit(p)
    bound = 2 * float(logit(1 - _LOGIT_MARGIN)) + float(np.log(len(y)))
    gap = lambda shift: expit(shift + log_odds).mean() - y.mean()  # noqa: E731
    return float(root_scalar(gap, bracket=(-bound, bound)).root)


def bootstrap(
    labels: Labels,
    probabilities: Probabilities,
    metric: Metric | str,
    num_resamples: int,
    seed: int,
) -> Bootstrap:
    """A metric on `num_resamples` resamples of patients, drawn with replacement."""
    y, p = checked(labels, probabilities)
    resampled = _RESAMPLED[Metric(metric)]
    values = np.concatenate(
        [resampled(y, p, weights) for weights in draw_patients(len(y), num_resamples, seed)]
    )
    return _kept(values)


def bootstrap_interval(
    labels: Labels,
    probabilities: Probabilities,
    metric: Metric | str,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """95 % patient-level percentile interval (low, high) of a metric."""
    return bootstrap(labels, probabilities, metric, num_resamples, seed).interval()


def bootstrap_mean(
    values: Sequence[float] | Float[np.ndarray, " patients"],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Mean of one value per patient on `num_resamples` resamples of patients.

    Raises:
        DataError: if there is no patient.
    """
    v = np.asarray(values, dtype=np.float64)
    if not len(v):
        raise DataError("A mean over patients needs at least one patient, got none.")
    means = [weights @ v / len(v) for weights in draw_patients(len(v), num_resamples, seed)]
    return _kept(np.concatenate(means))


def paired_difference(
    labels: Labels,
    first: Probabilities,
    second: Probabilities,
    metric: Metric | str,
    num_resamples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of a metric between two methods, both resampled with the same patients."""
    y, p = checked(labels, first)
    _, q = checked(labels, second)
    resampled = _RESAMPLED[Metric(metric)]
    values = np.concatenate(
        [
            resampled(y, p, weights) - resampled(y, q, weights)
            for weights in draw_patients(len(y), num_resamples, seed)
        ]
    )
    kept = _kept(values)
    low, high = kept.interval()
    point = _POINT[Metric(metric)]
    of_first, of_second = point(y, p), point(y, q)
    difference = None if of_first is None or of_second is None else of_first - of_second
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        minimal_detectable=kept.minimal_detectable(),
        p=kept.p_value(difference),
        num_skipped=kept.num_skipped,
    )


def performance(
    labels: Labels, probabilities: Probabilities, num_resamples: int = 1000, seed: int = 0
) -> dict[str, float | int | None]:
    """One method's row of results: point estimates, 95 % intervals and the paper's form.

    Keys: `n`, `num_positives`, `auroc` and `auprc` each also with `_low`, `_high`, `_mean`, `_sd`,
    then `num_skipped_resamples`, `brier`, `ece`, `calibration_slope`, `calibration_intercept`.
    """
    y, p = checked(labels, probabilities)
    row: dict[str, float | int | None] = {"n": len(y), "num_positives": int(y.sum())}
    for metric in (Metric.AUROC, Metric.AUPRC):
        ours = bootstrap(y, p, metric, num_resamples, seed)
        paper = bootstrap(y, p, metric, PAPER_NUM_RESAMPLES, seed)
        row[metric.value] = _POINT[metric](y, p)
        row[f"{metric}_low"], row[f"{metric}_high"] = ours.interval()
        row[f"{metric}_mean"], row[f"{metric}_sd"] = paper.mean_and_sd()
        row["num_skipped_resamples"] = ours.num_skipped
    row["brier"], row["ece"] = brier(y, p), ece(y, p)
    row["calibration_slope"] = calibration_slope(y, p)
    row["calibration_intercept"] = calibration_intercept(y, p)
    return row


def checked(
    labels: Labels, probabilities: Probabilities
) -> tuple[Int[np.ndarray, " patients"], Float[np.ndarray, " patients"]]:
    """Labels and probabilities as arrays.

    Raises:
        DataError: if they are not 0 or 1 and within [0, 1], one of each per patient.
    """
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise DataError(
            "Labels and probabilities must be two equally long, non-empty lists, got shapes "
            f"{y.shape} and {p.shape}. Pass one of each per patient."
        )
    if not np.isin(y, (0, 1)).all():
        strange = sorted({float(v) for v in y[~np.isin(y, (0, 1))]})[:5]
        raise DataError(f"Labels must be 0 or 1, got {strange}. Check the cohort's outcomes.")
    bad = ~(np.isfinite(p) & (p >= 0) & (p <= 1))
    if bad.any():
        raise DataError(
            f"Probabilities must lie in [0, 1], got {p[bad][:5].tolist()} at rows "
            f"{np.flatnonzero(bad)[:5].tolist()}. Replace unreadable answers before scoring."
        )
    return y.astype(np.int64), p


def _has_both(y: Int[np.ndarray, " patients"]) -> bool:
    return bool(0 < y.sum() < len(y))


def _separates(y: Int[np.ndarray, " patients"], p: Float[np.ndarray, " patients"]) -> bool:
    positive, negative = p[y == 1], p[y == 0]
    return bool(positive.min() >= negative.max() or positive.max() <= negative.min())


def _logit(p: Float[np.ndarray, " patients"]) -> Float[np.ndarray, " patients"]:
    return logit(np.clip(p, _LOGIT_MARGIN, 1 - _LOGIT_MARGIN))


def draw_patients(
    num_patients: int, num_resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "resamples patients"]]:
    """Blocks of resamples as the number of times each patient was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // num_patients)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = rng.integers(num_patients, size=(rows, num_patients))
        drawn += num_patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_patients)
        yield counts.reshape(rows, num_patients).astype(np.float64)


def metric_of_resamples(
    labels: Labels,
    probabilities: Probabilities,
    metric: Metric | str,
    weights: Float[np.ndarray, "resamples patients"],
) -> Float[np.ndarray, " resamples"]:
    """A metric on given resamples; NaN where a ranking metric meets one class only.

    Args:
        labels: 0 or 1.
        probabilities: predicted probability of 1.
        metric: which.
        weights: times each patient was drawn; a row of ones is the metric itself.
    """
    y, p = checked(labels, probabilities)
    return _RESAMPLED[Metric(metric)](y, p, weights)


def _kept(values: Float[np.ndarray, " resamples"]) -> Bootstrap:
    exists = np.isfinite(values)
    return Bootstrap(values=values[exists], num_skipped=int((~exists).sum()))


def _thresholds(
    y: Int[np.ndarray, " patients"],
    p: Float[np.ndarray, " patients"],
    weights: Float[np.ndarray, "resamples patients"],
) -> tuple[Float[np.ndarray, "resamples levels"], Float[np.ndarray, "resamples levels"]]:
    """Weight of positives and negatives at each distinct probability, largest first."""
    order = np.argsort(-p, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) != 0])
    ordered = weights[:, order]
    total = np.add.reduceat(ordered, starts, axis=1)
    positives = np.add.reduceat(ordered * y[order], starts, axis=1)
    return positives, total - positives


def _auroc_resampled(
    y: Int[np.ndarray, " patients"],
    p: Float[np.ndarray, " patients"],
    weights: Float[np.ndarray, "resamples patients"],
) -> Float[np.ndarray, " resamples"]:
    positives, negatives = _thresholds(y, p, weights)
    num_negatives = negatives.sum(1)
    below = num_negatives[:, None] - negatives.cumsum(1) + negatives / 2  # ties count one half
    return _ratio((positives * below).sum(1), positives.sum(1) * num_negatives)


def _auprc_resampled(
    y: Int[np.ndarray, " patients"],
    p: Float[np.ndarray, " patients"],
    weights: Float[np.ndarray, "resamples patients"],
) -> Float[np.ndarray, " resamples"]:
    positives, negatives = _thresholds(y, p, weights)
    found = positives.cumsum(1)
    flagged = found + negatives.cumsum(1)
    precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
    num_positives = positives.sum(1)
    values = _ratio((positives * precision).sum(1), num_positives)
    return np.where(negatives.sum(1) > 0, values, np.nan)


def _brier_resampled(
    y: Int[np.ndarray, " patients"],
    p: Float[np.ndarray, " patients"],
    weights: Float[np.ndarray, "resamples patients"],
) -> Float[np.ndarray, " resamples"]:
    return weights @ np.square(p - y) / weights.sum(1)


def _ece_resampled(
    y: Int[np.ndarray, " patients"],
    p: Float[np.ndarray, " patients"],
    weights: Float[np.ndarray, "resamples patients"],
) -> Float[np.ndarray, " resamples"]:
    index = np.minimum((p * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)
    in_bin = np.eye(NUM_CALIBRATION_BINS)[index]
    gaps = weights @ (in_bin * (y - p)[:, None])
    return np.abs(gaps).sum(1) / weights.sum(1)


def _ratio(
    above: Float[np.ndarray, " resamples"], below: Float[np.ndarray, " resamples"]
) -> Float[np.ndarray, " resamples"]:
    """Elementwise quotient; NaN (a resample to skip) where the divisor is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


_RESAMPLED: dict[Metric, Callable[..., np.ndarray]] = {
    Metric.AUROC: _auroc_resampled,
    Metric.AUPRC: _auprc_resampled,
    Metric.BRIER: _brier_resampled,
    Metric.ECE: _ece_resampled,
}

_POINT: dict[Metric, Callable[[Labels, Probabilities], float | None]] = {
    Metric.AUROC: auroc,
    Metric.AUPRC: auprc,
    Metric.BRIER: brier,
    Metric.ECE: ece,
}
