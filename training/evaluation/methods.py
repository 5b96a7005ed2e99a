"""The rows of a result: their names, order, prompts and training stages."""

# pandas annotates results of indexing too widely for the checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
from collections.abc import Mapping, Sequence

from actors.case_prompts import PromptKind
from training.readable import (
    Row,
)

EXPERT_METHODS = ("concare", "logistic_regression", "gradient_boosting")
"""Rows of models that read the record itself; they need no language model."""


RECORD_METHODS = (
    *EXPERT_METHODS,
    "logistic_regression_shared",
    "gradient_boosting_shared",
)
"""With those that only another test cohort has (`ehr.expert.transfer`)."""


_KINDS: Mapping[str, PromptKind] = {
    "vanilla": "vanilla",
    "sft": "vanilla",
    "think_then_answer": "think_then_answer",
    "think_then_answer_json": "think_then_answer_json",
    "question_decomposition": "question_decomposition",
    "short_answer": "short_answer",
}
"""Prompt of the methods that are not asked what they were trained to answer."""


def prompt_kind(method: str, trained: PromptKind) -> PromptKind:
    """Which prompt a language model row answers.

    Args:
        method: as in `evaluate.methods`.
        trained: `prompt.kind`, which Stage 1 and Stage 2 train.
    """
    return _KINDS.get(method, trained)


LANGUAGE_MODEL_METHODS: dict[str, str] = {
    "vanilla": "Vanilla",
    "think_then_answer": "Think-then-Answer",
    "think_then_answer_json": "Think-then-Answer, JSON",
    "question_decomposition": "Question Decomposition",
    "short_answer": "Short answer",
    "sft": "SFT",
    "stage1": "Stage-1",
    "stage1_grpo": "Stage-1 + GRPO",
    "stage1_dapo": "Stage-1 + DAPO",
    "without_stage1": "w/o Stage-1",
    "without_attention_reward": "w/o R_att",
    "without_adaptive_clip": "w/o adaptive clip",
    "shuffled_salience": "Shuffled salience",
    "rare_features": "Rare features count",
    "eag_rl_selected": "EAG-RL, selected step",
    "eag_rl": "EAG-RL",
}
"""Rows that a language model answers, in the order of the table, with the label of each."""


EHR_MODEL_METHODS: dict[str, str] = {
    "concare": "ConCare",
    "logistic_regression": "Logistic regression",
    "gradient_boosting": "Gradient boosting",
}
"""Rows of models trained on the record itself: what a hospital would use instead."""


TRANSFERRED_METHODS: dict[str, str] = {
    "logistic_regression_shared": "Logistic regression, shared features",
    "gradient_boosting_shared": "Gradient boosting, shared features",
}
"""Rows on another test cohort: trained on the features that both cohorts record."""


METHOD_LABELS: dict[str, str] = LANGUAGE_MODEL_METHODS | EHR_MODEL_METHODS | TRANSFERRED_METHODS


def method_label(method: object) -> str:
    """What the tables call a method; a method without an entry keeps its name."""
    return METHOD_LABELS.get(str(method), str(method))


def row_label(row: Row) -> str:
    """What the tables call a row."""
    return str(row.get("label") or method_label(row.get("method", "-")))


def ordered_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order of the method tables; methods without an entry come last."""
    order = {name: index for index, name in enumerate(METHOD_LABELS)}
    return sorted(rows, key=lambda row: order.get(str(row.get("method")), len(order)))
