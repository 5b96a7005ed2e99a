"""The reward as a plain callable, with the call shape of TRL's `reward_funcs`.

Needs neither Ray nor TRL: a trainer that samples completions itself calls it with them and with
the columns of its data set, as `eag-rl export` writes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from statistics import fmean

from ehr.catalogue import AGE_AND_SEX, Feature
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import parse_trajectory
from ehr.rewards import Reward, RewardContext, reward

__all__ = ["Completion", "RewardSection", "TrajectoryReward"]

Completion = str | Sequence[Mapping[str, object]]
"""A text, or messages of a chat with `role` and `content`."""


class TrajectoryReward:
    """R of Eq. 7 for completions of question-decomposition prompts.

    Args:
        features: of the cohort, which written names are matched to.
        section: weights and threshold; the defaults are the paper's.
        accuracy_weight: overrides `section.accuracy_weight`, as `grpo.accuracy_weight` does.
        max_completion_tokens: a completion of so many tokens counts as cut off, which is a format
            failure as in Stage 2; None = completions are taken as they are.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        section: RewardSection | None = None,
        accuracy_weight: float | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        if accuracy_weight is not None and not 0 <= accuracy_weight <= 1:
            raise DataError(f"expected accuracy_weight between 0 and 1, got {accuracy_weight!r}")
        if max_completion_tokens is not None and max_completion_tokens < 1:
            raise DataError(
                f"expected max_completion_tokens of 1 or more, got {max_completion_tokens!r}; None "
                "takes completions as they are"
            )
        self._known = frozenset((AGE_AND_SEX, *(feature.name for feature in features)))
        self._matcher = FeatureMatcher(features)
        self._section = section or RewardSection()
        self._accuracy_weight = accuracy_weight
        self._max_completion_tokens = max_completion_tokens

    @classmethod
    def of_run(
        cls, run_dir: str | Path, max_completion_tokens: int | None = None
    ) -> "TrajectoryReward":
        """The reward that a run's Stage 2 was made with, or else its search.

        It belongs to the columns that `eag-rl export` writes: `grpo.accuracy_weight` is in it, and
        so is the weighing by `grpo.rare_features`; what these weights and `grpo.shuffle_salience`
        come to is in the columns.

        Args:
            run_dir: a run folder.
            max_completion_tokens: as above.

        Raises:
            DataError: if the folder holds no cohort.
            RunFolderError: if it holds no configuration.
        """
        from ehr.cohorts.cohort import load_cohort
        from training.rewarded import reward_section
        from training.run.folder import RunFolder

        run_dir = Path(run_dir)
        config = RunFolder(run_dir).read_config("grpo", "search")
        return cls(
            load_cohort(run_dir / "cohort").features,
            reward_section(config),
            max_completion_tokens=max_completion_tokens,
        )

    def __call__(
        self,
        completions: Sequence[Completion],
        *,
        label: Sequence[int],
        salient_features: Sequence[Sequence[str]],
        salient_weights: Sequence[Sequence[float] | None] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: object,
    ) -> list[float]:
        """Total reward of each completion.

        Args:
            completions: texts, or chats whose assistant messages are read.
            label: of each completion's patient; 1 = the event of the task happened.
            salient_features: C_exp of each completion's patient.
            salient_weights: weight of each salient feature, in the same order: its stability, or
                its rarity with `grpo.rare_features`. Read where the reward counts by weight only.
            completion_ids: tokens of each completion, for `max_completion_tokens`.
            log_metric: is told the means of the reward's parts.

        Raises:
            DataError: if a column has another length than the completions, a label is missing,
                features are no list of the cohort's names with a weight each, a completion is no
                text, or its tokens are missing where they decide.
        """
        if isinstance(completions, str):
            raise DataError("expected a list of completions, got one text; put it into a list")
        if self._max_completion_tokens is not None and completion_ids is None:
            raise DataError(
                "expected the column `completion_ids`, by which max_completion_tokens="
                f"{self._max_completion_tokens} tells what was cut off; pass it, or leave the "
                "limit out"
            )
        _refuse_other_lengths(
            len(completions),
            {
                "label": label,
                "salient_features": salient_features,
                "salient_weights": salient_weights,
                "completion_ids": completion_ids,
            },
        )
        rewards = [
            self._reward(
                completion,
                _context(
                    label[index],
                    salient_features[index],
                    None if salient_weights is None else salient_weights[index],
                    self._known,
                ),
                None if completion_ids is None else len(completion_ids[index]),
            )
            for index, completion in enumerate(completions)
        ]
        if log_metric is not None and rewards:
            _log_means(rewards, log_metric)
        return [each.total for each in rewards]

    def _reward(
        self, completion: Completion, context: RewardContext, num_tokens: int | None
    ) -> Reward:
        parsed = parse_trajectory(_text(completion))
        limit = self._max_completion_tokens
        is_cut_off = limit is not None and num_tokens is not None and num_tokens >= limit
        if is_cut_off and parsed.failure is None:
            parsed = replace(parsed, failure="truncated")
        return reward(parsed, context, self._section, self._matcher, self._accuracy_weight)


def _refuse_other_lengths(
    num_completions: int, columns: Mapping[str, Sequence[object] | None]
) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != num_completions:
            raise DataError(
                f"expected one value of column {name!r} for each of {num_completions} "
                f"completions, got {len(column)}; `eag-rl export` writes all columns"
            )


def _log_means(rewards: Sequence[Reward], log_metric: Callable[[str, float], None]) -> None:
    log_metric("reward_cls", fmean(each.cls for each in rewards))
    log_metric("reward_att", fmean(each.att for each in rewards))
    failures = [each.format_failure is not None for each in rewards]
    log_metric("format_failure_rate", fmean(failures))


def _context(
    label: int,
    salient_features: Sequence[str] | None,
    weights: Sequence[float] | None,
    known: frozenset[str],
) -> RewardContext:
    if label not in (0, 1):
        raise DataError(
            f"expected label 0 or 1 for every completion, got {label!r}; give the data set a "
            "column `label`, as `eag-rl export` writes it"
        )
    if salient_features is None or isinstance(salient_features, str):
        raise DataError(
            f"expected a list of names in column `salient_features`, got {salient_features!r}; "
            "split it, or use the columns that `eag-rl export` writes"
        )
    if unknown := sorted(map(str, {*salient_features} - known)):
        raise DataError(
            f"expected names of the cohort's features in column `salient_features`, got "
            f"{unknown[:5]}, which no answer would ever match; use the column that `eag-rl export` "
            "writes for this cohort"
        )
    if len(set(salient_features)) < len(salient_features):
        raise DataError(
            f"expected each name once in column `salient_features`, got {list(salient_features)}"
        )
    if weights is not None and len(weights) != len(salient_features):
        raise DataError(
            f"expected one weight in column `salient_weights` for each of {len(salient_features)} "
            f"salient features, got {len(weights)}; `eag-rl export` writes both columns"
        )
    if weights is not None and not all(map(_is_weight, weights)):
        raise DataError(
            "expected finite numbers that are not negative in column `salient_weights`, got "
            f"{list(weights)}; `eag-rl export` writes the column"
        )
    stability = {} if weights is None else dict(zip(salient_features, weights, strict=True))
    return RewardContext(
        patient_id="",
        label=int(label),
        salient_features=frozenset(salient_features),
        stability=stability,
    )


def _is_weight(weight: object) -> bool:
    return isinstance(weight, Real) and 0 <= float(weight) < math.inf


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list | tuple) or not all(
        isinstance(message, Mapping) for message in completion
    ):
        raise DataError(
            f"expected every completion to be a text or a list of messages, got {completion!r:.80}"
        )
    contents = [
        message.get("content")
        for message in completion
        if message.get("role", "assistant") == "assistant"
    ]
    if not all(isinstance(content, str) for content in contents):
        raise DataError(
            f"expected messages whose content is text, got {contents[:1]!r}; join the parts first"
        )
    return "\n".join(map(str, contents))
