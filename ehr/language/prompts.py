"""Prompts: how a patient, a task and an output format are put to a language model.

Builders take a `PatientCase`, which has no outcome in it. The instructions come first and are the
same for every patient of a cohort; the case follows, so that prefix caching helps across patients.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ehr.catalogue import Feature, FeatureKind
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.cohorts.imputation import carry_forward
from ehr.config import PromptSection, Task
from ehr.errors import DataError
from ehr.language.feature_order import FeatureOrder
from ehr.language.trajectory import FINAL_SENTENCE, NUM_IMPORTANT_FEATURES

USEFULNESS_OPENING = "The usefulness score is: "
"""Fixed words that open the assistant's turn of the usefulness prompt, written by the caller."""

_OUTCOMES = {
    Task.MORTALITY: "dies in hospital",
    Task.READMISSION: "is readmitted within {days} days of discharge",
}
_QUALITIES = (
    ("Good: brings in facts not yet covered; looks at abnormal values or trends; combines features;"
     " uncovers hidden risk; brings the prediction closer."),
    ("Poor: repeats an earlier subquestion or the task itself; asks about fixed or unrelated"
     " features; ignores risks already found."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptContext:
    """What prompts say beside the case itself."""

    task: Task
    horizon_days: int
    features: tuple[Feature, ...]
    """Columns of every case's values, in prompt order."""
    has_dates: bool
    section: PromptSection
    order: FeatureOrder | None = None
    """Another order of the feature lines (EXP#2); no prompt that a model is trained on has one."""

    @classmethod
    def of(
        cls, cohort: Cohort, section: PromptSection, order: FeatureOrder | None = None
    ) -> "PromptContext":
        """The context of a cohort's prompts, in the cohort's order of features or another."""
        return cls(
            task=cohort.task,
            horizon_days=cohort.horizon_days,
            features=cohort.features,
            has_dates=cohort.has_dates,
            section=section,
            order=order,
        )

    @property
    def listed_names(self) -> tuple[str, ...]:
        """The names that answers may use for features; empty if they may use any."""
        if self.section.feature_names == "free":
            return ()
        return (*(feature.name for feature in self.features), "Age")

    @property
    def outcome(self) -> str:
        """The event of the task, as a predicate of the patient."""
        return _OUTCOMES[self.task].format(days=self.horizon_days)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsefulnessPrompt:
    """The user message of a usefulness prompt, around the trajectory so far.

    The message is `head`, then the steps up to and including the closing tag of the unanswered
    last subquestion, then `tail`. `head` is the same for all of a patient's scores.
    """

    head: str
    """Rubric, case, and the heading of the steps."""
    tail: str
    """What is asked."""


def question_decomposition_prompt(case: PatientCase, context: PromptContext) -> str:
    """User message of P_QD: predict by asking and answering subquestions.

    Args:
        case: the patient.
        context: task, features and options of the cohort's prompts.
    """
    return _message(
        [
            *_task_lines(context),
            "Ask short subquestions and answer them from the record. Then name the "
            f"{NUM_IMPORTANT_FEATURES} features that matter most and give the probability. Use "
            "exactly these tags, subquestions numbered from 1:",
            *_steps_lines(context),
            *_final_lines(context),
        ],
        case,
        context,
    )


def short_answer_prompt(case: PatientCase, context: PromptContext) -> str:
    """User message that asks for features and probability, without subquestions.

    Not in the paper: the end of a P_QD answer alone, short enough to measure what RL does to it.
    """
    return _message(
        [
            *_task_lines(context),
            f"Name the {NUM_IMPORTANT_FEATURES} features that matter most for this patient, then "
            "give the probability. Use exactly these tags and nothing else:",
            *_final_lines(context),
        ],
        case,
        context,
    )


def vanilla_prompt(case: PatientCase, context: PromptContext) -> str:
    """User message that asks for the probability only."""
    lines = ["Reply with the probability and nothing else:", "<Final answer>", "0.XX"]
    return _message([*_task_lines(context), *lines, "</Final answer>"], case, context)


def think_prompt(case: PatientCase, context: PromptContext) -> str:
    """User message of Think-then-Answer: free reasoning, then the probability."""
    lines = ["Reason briefly first, then give the probability, in these tags:"]
    layout = ["<think>", "reasoning", "</think>", "<answer>", "0.XX", "</answer>"]
    return _message([*_task_lines(context), *lines, *layout], case, context)


def think_json_prompt(case: PatientCase, context: PromptContext) -> str:
    """User message of Think-then-Answer in JSON: one object, the reasoning first.

    With an example of the object; units and reference ranges are always shown, whatever
    `prompt.units` and `prompt.reference_ranges` say.
    """
    shown = context.section.model_copy(update={"units": True, "reference_ranges": True})
    context = replace(context, section=shown)
    return _message(
        [
            *_task_lines(context),
            "Reply with one JSON object and nothing else. Its keys: think, your brief reasoning, "
            "then answer, the probability as a number:",
            _json_answer(context),
        ],
        case,
        context,
    )


def usefulness_prompt(case: PatientCase, context: PromptContext) -> UsefulnessPrompt:
    """User message of P_H: how useful is the last, unanswered subquestion (Eq. 3)."""
    rubric = [
        f"A patient's record is examined by subquestions to predict whether the patient "
        f"{context.outcome}. Rate how useful the last subquestion, which has no answer yet, is "
        "for that prediction, from 1 (useless) to 100 (extremely useful).",
        *_QUALITIES,
        *_carried_lines(context),
    ]
    return UsefulnessPrompt(
        head=_message(rubric, case, context) + "\n\nSubquestions so far:\n",
        tail="\nHow useful is the last subquestion? Give its score from 1 to 100.",
    )


def case_lines(case: PatientCase, context: PromptContext) -> str:
    """Background, visits and one line per feature, as the record shows them.

    Values are raw. Missing ones are `NaN` (numbers) or `unknown` (words), or with `prompt.missing:
    locf` the patient's last ones before them (`shown_case`).

    Raises:
        DataError: if a code of a categorical feature has no word.
    """
    case = shown_case(case, context.section)
    age = "unknown" if case.age is None or math.isnan(case.age) else f"{case.age:.0f} years"
    lines = [f"- Sex: {case.sex}", f"- Age: {age}", f"- Visits: {_visits(case, context)}"]
    num_features = len(context.features)
    order = context.order
    for column in range(num_features) if order is None else order.of(case.patient_id, num_features):
        feature = context.features[column]
        values = ", ".join(_value(feature, float(v)) for v in case.values[:, column])
        lines.append(f"- {_feature_name(feature, context.section)}: [{values}]")
    return "\n".join(lines)


def shown_case(case: PatientCase, section: PromptSection) -> PatientCase:
    """The patient's record as prompts show it; doing it twice changes nothing more.

    `prompt.missing: locf` carries each feature's last observation of this patient forward, codes of
    categories too; before the first observation values stay missing. What is checked against the
    record (`ehr.answers.grounding`) takes the case from here, so that a carried value counts as
    shown.

    Args:
        case: the patient as recorded.
        section: says what stands where nothing was measured.
    """
    if section.missing == "as_is":
        return case
    return replace(case, values=carry_forward(case.values))


def fit_case(
    case: PatientCase,
    render: Callable[[PatientCase], str],
    count_tokens: Callable[[str], int],
    max_tokens: int,
) -> PatientCase:
    """The case with as many of its latest visits as fit; the prompt says how many are left out.

    Args:
        case: the patient.
        render: the prompt of a case.
        count_tokens: tokens of a prompt.
        max_tokens: most tokens of the prompt.

    Raises:
        DataError: if even the last visit alone does not fit.
    """
    if count_tokens(render(case)) <= max_tokens:
        return case
    # The length grows with the visits: bisect the number of visits that fit.
    fits, too_many = 0, case.num_visits
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count_tokens(render(_latest(case, middle))) <= max_tokens:
            fits = middle
        else:
            too_many = middle
    if fits == 0:
        needed = count_tokens(render(_latest(case, 1)))
        raise DataError(
            f"expected the prompt of one visit to fit into {max_tokens} tokens, patient "
            f"{case.patient_id!r} needs {needed}; raise prompt.max_prompt_tokens, or switch off "
            "prompt.worked_example, prompt.units or prompt.reference_ranges"
        )
    return _latest(case, fits)


def shown_number(value: float) -> float:
    """A recorded number as prompts show it."""
    # Charted values have at most this many decimals; daily means would show noise digits.
    return round(value, 2 if abs(value) >= 1 else 3)


_STEPS_LAYOUT = (
    "<Subquestion 1>", "question", "</Subquestion 1>", "<Answer 1>", "answer", "</Answer 1>",
    "<Final subquestion>", FINAL_SENTENCE, "</Final subquestion>",
)  # fmt: skip
_FINAL_LAYOUT = (
    "<Important Features>", "name, name, name, name, name", "</Important Features>",
    "<Final answer>", "0.XX", "</Final answer>",
)  # fmt: skip


_CARRIED = (
    "A value that was not measured at a visit is the last one measured before it, carried forward.",
)


def _task_lines(context: PromptContext) -> list[str]:
    return [
        f"Predict from this record whether the patient {context.outcome}. Each list has one value "
        "per visit, oldest first; NaN and unknown mean missing.",
        *_carried_lines(context),
        "Give a probability: 1 = certain to happen, 0 = certain not to; 0.50 only if the data "
        "conflict or are too few.",
    ]


def _carried_lines(context: PromptContext) -> Sequence[str]:
    """That values are carried forward, where they are."""
    return _CARRIED if context.section.missing == "locf" else ()


def _steps_lines(context: PromptContext) -> Sequence[str]:
    """The subquestions' layout, or a worked example of it."""
    if not context.section.worked_example:
        return _STEPS_LAYOUT
    return [
        "<Subquestion 1>", f"How does {_example_names(context)[0]} change?", "</Subquestion 1>",
        "<Answer 1>", "It worsens at every visit.", "</Answer 1>",
        "<Final subquestion>", FINAL_SENTENCE, "</Final subquestion>",
    ]  # fmt: skip


def _final_lines(context: PromptContext) -> Sequence[str]:
    """The final's layout, or a worked example of it."""
    if not context.section.worked_example:
        return _FINAL_LAYOUT
    return [
        "<Important Features>", ", ".join(_example_names(context)), "</Important Features>",
        "<Final answer>", "0.72", "</Final answer>",
    ]  # fmt: skip


def _example_names(context: PromptContext) -> list[str]:
    """Five of this cohort's features, of no real patient."""
    names = [feature.name for feature in context.features]
    # Spread over the list, so that the example favours no part of it.
    stride = max(1, len(names) // (NUM_IMPORTANT_FEATURES - 1))
    return [*names[stride // 2 :: stride][: NUM_IMPORTANT_FEATURES - 1], "Age"]


def _json_answer(context: PromptContext) -> str:
    """The object's layout, or a worked example of it."""
    if not context.section.worked_example:
        return '{"think": "reasoning", "answer": 0.XX}'
    first, second, *_ = _example_names(context)
    thought = f"{first} worsens at every visit and {second} stays abnormal."
    return json.dumps({"think": thought, "answer": 0.72}, ensure_ascii=False)


def _message(instructions: list[str], case: PatientCase, context: PromptContext) -> str:
    return "\n".join([*instructions, "", "Patient:", case_lines(case, context)])


def _visits(case: PatientCase, context: PromptContext) -> str:
    if not context.has_dates:
        labels = f"at {', '.join(case.visit_labels)} since admission"
    elif context.section.time == "offsets":
        labels = f"on day {', '.join(f'{day:g}' for day in case.visit_days)}"
    else:
        labels = f"on {', '.join(case.visit_labels)}"
    left_out = f" ({case.num_earlier_visits} earlier left out)" if case.num_earlier_visits else ""
    return f"{case.num_visits}{left_out}, {labels}"


def _feature_name(feature: Feature, section: PromptSection) -> str:
    notes: list[str] = []
    if section.units and feature.unit:
        notes.append(feature.unit)
    if section.reference_ranges and feature.reference is not None:
        low, high = feature.reference
        notes.append(f"normal {low:g}-{high:g}" if low < high else f"normal {low:g}")
    return f"{feature.name} ({'; '.join(notes)})" if notes else feature.name


def _value(feature: Feature, value: float) -> str:
    if feature.kind is FeatureKind.CATEGORICAL:
        if math.isnan(value):
            return "unknown"
        words = dict(feature.categories)
        if value not in words:
            raise DataError(
                f"expected a code of {feature.name!r} among {list(words)[:5]}, got {value!r}; "
                "check the loader's mapping or the catalogue's categories"
            )
        return words[value]
    if math.isnan(value):
        return "NaN"
    return str(shown_number(value))


def _latest(case: PatientCase, num_visits: int) -> PatientCase:
    first = case.num_visits - num_visits
    return replace(
        case,
        visit_labels=case.visit_labels[first:],
        visit_days=case.visit_days[first:],
        values=case.values[first:],
        num_earlier_visits=case.num_earlier_visits + first,
    )
