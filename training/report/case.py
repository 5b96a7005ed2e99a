"""One test patient side by side: the untrained model's answer and the trained one's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.methods import method_label
from training.readable import finite_number
from training.report.records import name_list
from training.report.text import TextBlock, printable, text_blocks
from training.run.files import Rows

UNTRAINED = ("question_decomposition", "short_answer")
"""The untrained model's rows that name features; the first of these that the run has."""

TRAINED = (
    "eag_rl",
    "stage1_grpo",
    "stage1_dapo",
    "without_attention_reward",
    "without_adaptive_clip",
    "shuffled_salience",
    "rare_features",
    "without_stage1",
    "stage1",
)
"""What stands beside the untrained answer: the first of these that the run has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFeature:
    """A feature that an answer names."""

    name: str
    is_salient: bool
    """The expert names it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One method's answer for the patient."""

    label: str
    probability: float | None
    parse_failed: bool
    features: tuple[NamedFeature, ...]
    overlap: str
    """Such as "2 of 8": features named by both, of all that either names."""
    blocks: tuple[TextBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseComparison:
    """One patient with two answers and the expert's features."""

    patient_id: str
    label: int | None
    salient: tuple[str, ...]
    answers: tuple[Answer, ...]


def compare_case(predictions: Rows) -> CaseComparison | None:
    """The first test patient, by id, with an untrained and a trained answer; None without one.

    Patients whose answers are both readable go first, and among those the positive ones; nothing
    else about the answers decides, so the case is not picked for its result.
    """
    with_text = [row for row in predictions if isinstance(row.get("text"), str)]
    methods = {row["method"] for row in with_text}
    trained = next((method for method in TRAINED if method in methods), None)
    untrained = next((method for method in UNTRAINED if method in methods), None)
    if trained is None or untrained is None:
        return None
    rows = {
        (str(row["method"]), str(row["patient_id"])): row
        for row in with_text
        if row["method"] in (untrained, trained)
    }
    patients = [
        patient for method, patient in rows if method == untrained and (trained, patient) in rows
    ]
    if not patients:
        return None

    def preference(patient: str) -> tuple[bool, bool, str]:
        pair = (rows[untrained, patient], rows[trained, patient])
        any_failed = any(_first_answer(row)[0] for row in pair)
        return (any_failed, finite_number(pair[0]["label"]) != 1, patient)

    patient = min(patients, key=preference)
    pair = (rows[untrained, patient], rows[trained, patient])
    salient = next((names for row in pair if (names := name_list(row.get("salient")))), [])
    label = finite_number(pair[0]["label"])
    return CaseComparison(
        patient_id=printable(patient),
        label=None if label is None else int(label),
        salient=tuple(printable(name) for name in salient),
        answers=tuple(_answer(row, salient) for row in pair),
    )


def _answer(row: dict[str, object], salient: Sequence[str]) -> Answer:
    named = list(dict.fromkeys(name_list(row.get("features"))))
    common, union = set(named) & set(salient), set(named) | set(salient)
    failed, probability = _first_answer(row)
    return Answer(
        label=method_label(row["method"]),
        # a failed answer carries the base rate, which the model never said
        probability=None if failed else probability,
        parse_failed=failed,
        features=tuple(
            NamedFeature(name=printable(name), is_salient=name in common) for name in named
        ),
        overlap=f"{len(common)} of {len(union)}" if salient else "",
        blocks=tuple(text_blocks(row["text"])),
    )


def _first_answer(row: Mapping[str, object]) -> tuple[bool, float | None]:
    """Whether the answer that is shown could not be read, and its probability.

    Of several answers the row's probability is their mean; text and features are the first's.
    """
    failed, probabilities = row.get("sample_failed"), row.get("sample_probabilities")
    if isinstance(failed, list) and isinstance(probabilities, list):
        return bool(failed[0]), finite_number(probabilities[0])
    return bool(row["parse_failed"]), finite_number(row["probability"])
