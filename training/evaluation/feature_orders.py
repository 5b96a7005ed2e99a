"""EXP#2: the language model rows again, with the features of the test prompts in other orders."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from ehr.language.feature_order import FeatureOrder
from ehr.whole_files import write_json
from training.evaluation.answers import AnswerParser
from training.evaluation.asking import Asker, kept_or_made
from training.evaluation.predictions import concatenate
from training.evaluation.results import difference_rows, result_rows
from training.evaluation.table import ORDER_MEASURES
from training.run.session import Session

FEATURE_ORDER_FILE = "feature_order.json"
"""In RUN/evaluate: result rows by share and seed, and their means over the seeds."""

_PLAIN = "the cohort's order"
"""Name of the answers to unchanged prompts in a paired difference."""


class FeatureOrders:
    """What the evaluate stage asks and writes about other orders of the features.

    Args:
        session: the run.
        reader: reads answers of its cohort.
        patients: test patients that every row is asked about.
    """

    def __init__(self, session: Session, reader: AnswerParser, patients: list[str]) -> None:
        self._section = session.config.evaluate
        self._size = session.config.expert.num_salient_features
        self._folder = session.path("evaluate")
        self._num_features = len(session.cohort.features)
        self._reader = reader
        self._patients = patients
        self.orders = self._section.feature_orders
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pd.DataFrame] = []

    def ask(
        self, name: str, original: pd.DataFrame, asker: Asker, tell: Callable[[int], None]
    ) -> None:
        """Asks one language model row; answers of an interrupted evaluation are kept.

        Args:
            name: of the row in the result table.
            original: its answers to the cohort's order.
            asker: of its policy.
            tell: hears how many answers there are, of all orders together.
        """
        if 0 in self._section.feature_order_shuffle:
            self._rows.append(self._result(original, None))
        for number, order in enumerate(self.orders):

            def answered(order: FeatureOrder = order, before: int = number) -> pd.DataFrame:
                done_before = before * len(self._patients)
                answers = asker.reordered(
                    self._patients, order, lambda done: tell(done_before + done)
                )
                return self._reader.rows(name, answers)

            part = f"{name}.order-{order.share:g}-{order.seed}.parquet"
            table = kept_or_made(self._folder / "parts" / part, answered)
            differences = self._differences(original, table)
            self._rows.append(self._result(table, order) | {"differences": differences})
            self._tables.append(table.assign(share=order.share, seed=order.seed))

    def write(self) -> None:
        """Writes answers and results."""
        if self._tables:
            answers = self._folder / "feature_order_predictions.parquet"
            concatenate(self._tables).to_parquet(answers)
        write_json(
            self._folder / FEATURE_ORDER_FILE,
            {
                "num_features": self._num_features,
                "shares": list(self._section.feature_order_shuffle),
                "seeds": list(self._section.feature_order_seed),
                "rows": self._rows,
                "means": mean_rows(self._rows),
            },
        )

    def _result(self, table: pd.DataFrame, order: FeatureOrder | None) -> dict[str, Any]:
        (row,) = self._settled(result_rows)(table, self._size)
        return {
            "method": row.pop("method"),
            "share": 0.0 if order is None else order.share,
            "seed": None if order is None else order.seed,
            "moved_features": 0 if order is None else order.num_moved(self._num_features),
            **row,
        }

    def _differences(self, original: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
        """Paired by patient: the other order minus the cohort's."""
        both = concatenate([table.assign(method="reordered"), original.assign(method=_PLAIN)])
        return self._settled(difference_rows)(both, "reordered")

    def _settled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """With the resamples and the seed of the evaluation."""
        section = self._section
        return partial(function, num_resamples=section.num_resamples, seed=section.seed)


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard deviations over the seeds, a row for every method and share.

    Args:
        rows: with `method`, `share` and the measures; a measure that is null for a seed is null.
    """
    grouped: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["method"], row["share"]), []).append(row)
    means: list[dict[str, Any]] = []
    for (method, share), found in grouped.items():
        mean: dict[str, Any] = {
            "method": method,
            "share": share,
            "moved_features": found[0]["moved_features"],
            "num_seeds": len(found),
        }
        for name in ORDER_MEASURES:
            values = [row[name] for row in found]
            is_known = None not in values
            mean[name] = fmean(values) if is_known else None
            mean[f"{name}_sd"] = stdev(values) if is_known and len(values) > 1 else None
        means.append(mean)
    return means
