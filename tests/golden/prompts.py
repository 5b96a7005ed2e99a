"""Prompts of one patient, written by hand, with every option that changes a text."""

from dataclasses import replace

import numpy as np

from ehr.catalogue import BENCHMARK_17
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.config import PromptSection, Task
from ehr.language.feature_order import FeatureOrder
from ehr.language.prompts import (
    PromptContext,
    case_lines,
    question_decomposition_prompt,
    short_answer_prompt,
    think_json_prompt,
    think_prompt,
    usefulness_prompt,
    vanilla_prompt,
)

NAN = float("nan")
CASE = PatientCase(
    patient_id="golden",
    sex=Sex.FEMALE,
    age=81.0,
    visit_labels=("2119-12-24", "2119-12-25"),
    visit_days=(0.0, 1.0),
    # Capillary refill, GCS eye, motor, total, verbal, then the numbers in the catalogue's order.
    values=np.array(
        [
            [0, 4, 6, 15, 5, 57, 100, 484, 88, 157, 82, 99, 25, 96, 37.6, 62.2, 7.13],
            [1, 4, NAN, NAN, 5, 70, 50, 178.25, 80, NAN, 90, 99, 24, 94, 37.3, 119.8, 7.164],
        ]
    ),
)


def rendered_prompts() -> dict[str, list[str]]:
    """Every prompt of the patient, as lines."""
    usefulness = usefulness_prompt(CASE, context())
    texts = {
        "question_decomposition": question_decomposition_prompt(CASE, context()),
        "question_decomposition_readmission": question_decomposition_prompt(
            CASE, context(Task.READMISSION, worked_example=False)
        ),
        "short_answer": short_answer_prompt(CASE, context()),
        "short_answer_layout": short_answer_prompt(CASE, context(worked_example=False)),
        "vanilla": vanilla_prompt(CASE, context()),
        "think": think_prompt(CASE, context()),
        "think_json": think_json_prompt(CASE, context()),
        "think_json_layout": think_json_prompt(CASE, context(worked_example=False)),
        "question_decomposition_locf": question_decomposition_prompt(CASE, context(missing="locf")),
        "usefulness_head": usefulness.head,
        "usefulness_tail": usefulness.tail,
        "case_with_options": case_lines(
            CASE,
            replace(
                context(units=True, reference_ranges=True, time="offsets"),
                order=FeatureOrder(share=0.5, seed=0),
            ),
        ),
    }
    return {name: text.split("\n") for name, text in texts.items()}


def context(task: Task = Task.MORTALITY, **options: bool | float | str) -> PromptContext:
    """Context of the benchmark features with some prompt options."""
    return PromptContext(
        task=task,
        horizon_days=30,
        features=BENCHMARK_17,
        has_dates=True,
        section=PromptSection.model_validate(options),
    )
