"""What the `sft` row is trained on: balanced direct predictions, no reasoning."""

import itertools
import random
from collections.abc import Mapping, Sequence

from ehr.cohorts.cohort import Cohort, choose_patients
from ehr.errors import DataError
from ehr.language.guided_format import GuidedFormat
from ehr.language.guided_writers import DirectWriter
from ehr.language.pieces import TextTokenizer
from ehr.rewards import MIN_PROBABILITY
from training.config.sft import DirectSftSection
from training.sft.held_out import num_held_out
from training.sft.inputs import SftExample


def choose_predictions(cohort: Cohort, section: DirectSftSection) -> list[str]:
    """Training patients of the predictions, as many positives as negatives, in a seeded order.

    A patient stands in the list once for every prediction about it.

    Raises:
        DataError: if the training patients lack a class.
    """
    shuffled = choose_patients(cohort, "train", None, balance=False, seed=section.seed)
    classes = [[p for p in shuffled if cohort.labels[p] == label] for label in (1, 0)]
    found = [len(patients) for patients in classes]
    if not all(found):
        raise DataError(
            "the direct predictions of the `sft` row are half positives, half negatives; the "
            f"training patients are {found[0]} positives and {found[1]} negatives; take `sft` out "
            "of evaluate.methods, or choose a larger cohort"
        )
    half = section.num_predictions // 2
    if not section.replay:
        half = min(half, *found)
    chosen = [
        patient
        for patients in classes
        for patient in itertools.islice(itertools.cycle(patients), half)
    ]
    random.Random(f"{section.seed} predictions").shuffle(chosen)
    return chosen


def choose_held_out(cohort: Cohort, section: DirectSftSection) -> list[str]:
    """Patients of the validation split whose loss is measured; half positives where it has them.

    As many as `validation_share` of the patients trained on, or what the split has; none where
    that is very few.
    """
    num_trained = len(set(choose_predictions(cohort, section)))
    num = min(
        num_held_out(num_trained, section.validation_share), len(cohort.splits.get("val", ()))
    )
    return choose_patients(cohort, "val", num, balance=True, seed=section.seed) if num else []


def prediction_examples(
    patients: Sequence[str],
    prompts: Mapping[str, tuple[int, ...]],
    labels: Mapping[str, int],
    answers: Mapping[int, tuple[tuple[int, ...], tuple[bool, ...]]],
) -> tuple[SftExample, ...]:
    """One example for each entry of `patients`, repeated ones included.

    Args:
        patients: whom to predict about.
        prompts: the Vanilla prompt's tokens of each.
        labels: the outcome of each.
        answers: of `direct_answers`.
    """
    examples = []
    for patient in patients:
        token_ids, model_written = answers[labels[patient]]
        examples.append(
            SftExample(
                patient_id=patient,
                prompt_token_ids=prompts[patient],
                responses=(token_ids,),
                model_written=(model_written,),
            )
        )
    return tuple(examples)


def direct_answers(
    tokenizer: TextTokenizer, answer_format: str
) -> dict[int, tuple[tuple[int, ...], tuple[bool, ...]]]:
    """The right answer to the Vanilla prompt for either label: tokens, and which are trained.

    A label is written as the probability that the prompt asks for, at the ends of the range that
    rewards tell apart, 0.01 and 0.99. In the guided format the caller writes the tags, in the free
    format the model does.

    Args:
        tokenizer: the model's.
        answer_format: `prompt.format`.
    """
    answers = {}
    for label, probability in ((0, MIN_PROBABILITY), (1, 1 - MIN_PROBABILITY)):
        line = f"{probability:.2f}\n"
        if answer_format == "guided":
            writer = DirectWriter(GuidedFormat(tokenizer))
            writer.accept(tokenizer.encode(line), line)
            answers[label] = (writer.token_ids, writer.model_mask)
        else:
            token_ids = tuple(tokenizer.encode(f"<Final answer>\n{line}</Final answer>"))
            answers[label] = (token_ids, (True,) * len(token_ids))
    return answers
