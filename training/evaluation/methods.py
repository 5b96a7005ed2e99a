"""The rows of a result, in one table: label, prompt, and the stage that trains what answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actors.case_prompts import PromptKind
from training.readable import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row."""

    name: str
    """In `evaluate.methods`, or of `grpo.method` in place of `stage2`."""
    label: str
    """What tables call it."""
    source: Literal["language_model", "record", "transferred"] = "language_model"
    """Who answers: a language model, a model of the record itself, or one of the features that both
    cohorts record (on another test cohort only, `ehr.expert.transfer`)."""
    kind: PromptKind | None = None
    """The prompt it answers; None = `prompt.kind`, which Stage 1 and Stage 2 train."""
    trained_by: str | None = None
    """The stage whose adapter answers; None = the model as it was loaded."""


METHODS = (
    Method(name="vanilla", label="Vanilla", kind="vanilla"),
    Method(name="think_then_answer", label="Think-then-Answer", kind="think_then_answer"),
    Method(
        name="think_then_answer_json",
        label="Think-then-Answer, JSON",
        kind="think_then_answer_json",
    ),
    Method(
        name="question_decomposition",
        label="Question Decomposition",
        kind="question_decomposition",
    ),
    Method(name="short_answer", label="Short answer", kind="short_answer"),
    Method(name="sft", label="SFT", kind="vanilla", trained_by="direct_sft"),
    Method(name="stage1", label="Stage-1", trained_by="sft"),
    *(
        Method(name=name, label=label, trained_by="grpo")
        for name, label in (
            ("stage1_grpo", "Stage-1 + GRPO"),
            ("stage1_dapo", "Stage-1 + DAPO"),
            ("without_stage1", "w/o Stage-1"),
            ("without_attention_reward", "w/o R_att"),
            ("without_adaptive_clip", "w/o adaptive clip"),
            ("shuffled_salience", "Shuffled salience"),
            ("rare_features", "Rare features count"),
            ("eag_rl_selected", "EAG-RL, selected step"),
            ("eag_rl", "EAG-RL"),
        )
    ),
    Method(name="concare", label="ConCare", source="record"),
    Method(name="logistic_regression", label="Logistic regression", source="record"),
    Method(name="gradient_boosting", label="Gradient boosting", source="record"),
    Method(
        name="logistic_regression_shared",
        label="Logistic regression, shared features",
        source="transferred",
    ),
    Method(
        name="gradient_boosting_shared",
        label="Gradient boosting, shared features",
        source="transferred",
    ),
)
"""In the order of the table."""

_BY_NAME = {method.name: method for method in METHODS}
# What is trained last answers under the name of `grpo.method`.
_ASKED = _BY_NAME | {"stage2": _BY_NAME["eag_rl"]}


def _labels(source: str) -> dict[str, str]:
    return {each.name: each.label for each in METHODS if each.source == source}


LANGUAGE_MODEL_METHODS = _labels("language_model")
"""Rows that a language model answers, with the label of each."""

EHR_MODEL_METHODS = _labels("record")
"""Rows of models trained on the record itself: what a hospital would use instead."""

EXPERT_METHODS = tuple(EHR_MODEL_METHODS)
"""Their names; they need no language model."""

RECORD_METHODS = (*EXPERT_METHODS, *_labels("transferred"))
"""With those that only another test cohort has."""


def prompt_kind(method: str, trained: PromptKind) -> PromptKind:
    """Which prompt a language model row answers.

    Args:
        method: as in `evaluate.methods`.
        trained: `prompt.kind`, which Stage 1 and Stage 2 train.
    """
    return _ASKED[method].kind or trained


def training_stage(method: str) -> str | None:
    """The stage whose adapter answers a row of `evaluate.methods`; None = the untrained model."""
    return _ASKED[method].trained_by


def method_label(method: object) -> str:
    """What the tables call a method; a method without an entry keeps its name."""
    known = _BY_NAME.get(str(method))
    return str(method) if known is None else known.label


def row_label(row: Row) -> str:
    """What the tables call a row."""
    return str(row.get("label") or method_label(row.get("method", "-")))


def ordered_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order of the method table; methods without an entry come last."""
    order = {method.name: place for place, method in enumerate(METHODS)}
    return sorted(rows, key=lambda row: order.get(str(row.get("method")), len(order)))
