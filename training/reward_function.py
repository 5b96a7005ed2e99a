"""The reward as a plain callable, with the call shape of TRL's `reward_funcs`.

Needs neither Ray nor TRL: a trainer that samples completions itself calls it with them and with
the columns of its data set, as `eag-rl export` writes them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from ehr.catalogue import Feature
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.names import FeatureMatcher
from ehr.rewards import Reward, RewardContext, reward
from ehr.trajectory import parse_trajectory

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
        self._matcher = FeatureMatcher(features)
        self._section = section or RewardSection()
        self._accuracy_weight = accuracy_weight
        self._max_completion_tokens = max_completion_tokens

    @classmethod
    def of_run(cls, run_dir: Path, max_completion_tokens: int | None = None) -> "TrajectoryReward":
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
        from ehr.cohort import load_cohort
        from training.rewarded import reward_section
        from training.run_folder import RunFolder

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
            DataError: if a column has another length than the completions, a label is missing, or
                features are no list of names with a weight each.
        """
        columns = {
            "label": label,
            "salient_features": salient_features,
            "salient_weights": salient_weights,
            "completion_ids": completion_ids,
        }
        for name, column in columns.items():
            if column is not None and len(column) != len(completions):
                raise DataError(
                    f"expected one value of column {name!r} for each of {len(completions)} "
                    f"completions, got {len(column)}; `eag-rl export` writes all columns"
                )
        rewards = [
            self._reward(
                completion,
                _context(
                    label[index],
                    salient_features[index],
                    None if salient_weights is None else salient_weights[index],
                ),
                None if completion_ids is None else len(completion_ids[index]),
            )
            for index, completion in enumerate(completions)
        ]
        if log_metric is not None and rewards:
            log_metric("reward_cls", fmean(each.cls for each in rewards))
            log_metric("reward_att", fmean(each.att for each in rewards))
            failures = [each.format_failure is not None for each in rewards]
            log_metric("format_failure_rate", fmean(failures))
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


def _context(
    label: int, salient_features: Sequence[str], weights: Sequence[float] | None
) -> RewardContext:
    if label not in (0, 1):
        raise DataError(
            f"expected label 0 or 1 for every completion, got {label!r}; give the data set a "
            "column `label`, as `eag-rl export` writes it"
        )
    if isinstance(salient_features, str):
        raise DataError(
            f"expected a list of names in column `salient_features`, got {salient_features!r}; "
            "split it, or use the columns that `eag-rl export` writes"
        )
    if weights is not None and len(weights) != len(salient_features):
        raise DataError(
            f"expected one weight in column `salient_weights` for each of {len(salient_features)} "
            f"salient features, got {len(weights)}; `eag-rl export` writes both columns"
        )
    stability = {} if weights is None else dict(zip(salient_features, weights, strict=True))
    return RewardContext(
        patient_id="",
        label=int(label),
        salient_features=frozenset(salient_features),
        stability=stability,
    )


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    contents = [
        message["content"]
        for message in completion
        if message.get("role", "assistant") == "assistant"
    ]
    if not all(isinstance(content, str) for content in contents):
        raise DataError(
            f"expected messages whose content is text, got {contents[:1]!r}; join the parts first"
        )
    return "\n".join(map(str, contents))
