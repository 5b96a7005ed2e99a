import inspect
import json
from dataclasses import replace

import numpy as np
import pytest

from ehr.catalogue import Feature, FeatureKind
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.config import PromptSection, Task
from ehr.errors import DataError
from ehr.language import prompts
from ehr.language.feature_order import FeatureOrder
from ehr.language.json_answer import parse_think_json
from ehr.language.prompts import (
    PromptContext,
    case_lines,
    fit_case,
    question_decomposition_prompt,
    short_answer_prompt,
    shown_case,
    think_json_prompt,
    think_prompt,
    usefulness_prompt,
    vanilla_prompt,
)
from ehr.language.trajectory import parse_trajectory

NAN = float("nan")
FEATURES = (
    Feature(
        name="Coma scale",
        kind=FeatureKind.CATEGORICAL,
        categories=((1.0, "No Response"), (2.0, "Oriented")),
    ),
    Feature(name="Glucose", unit="mg/dL", reference=(70, 99.5)),
    Feature(name="Height", unit="cm"),
    Feature(name="pH"),
)


def a_case(**changes):
    fields = {
        "patient_id": "p1",
        "sex": Sex.FEMALE,
        "age": 81.4,
        "visit_labels": ("2119-12-24", "2119-12-26"),
        "visit_days": (0.0, 2.0),
        "values": np.array([[2.0, 484.0, 157.0, 7.134999], [NAN, 178.0, NAN, 0.0052]]),
    }
    return PatientCase(**fields | changes)


def context(has_dates=True, task=Task.MORTALITY, features=FEATURES, **options):
    return PromptContext(
        task=task,
        horizon_days=30,
        features=features,
        has_dates=has_dates,
        section=PromptSection(**options),
    )


def test_a_case_shows_background_visits_and_raw_values():
    assert case_lines(a_case(), context()) == (
        "- Sex: female\n"
        "- Age: 81 years\n"
        "- Visits: 2, on 2119-12-24, 2119-12-26\n"
        "- Coma scale: [Oriented, unknown]\n"
        "- Glucose: [484.0, 178.0]\n"
        "- Height: [157.0, NaN]\n"
        "- pH: [7.13, 0.005]"
    )


def test_unknown_sex_and_age_are_said():
    lines = case_lines(a_case(sex=Sex.UNKNOWN, age=None), context())

    assert lines.startswith("- Sex: unknown\n- Age: unknown\n")


def test_units_and_reference_ranges_follow_the_names():
    lines = case_lines(a_case(), context(units=True, reference_ranges=True))

    assert "- Glucose (mg/dL; normal 70-99.5): [" in lines
    assert "- Height (cm): [" in lines
    assert "- pH: [" in lines


def test_offsets_replace_dates():
    lines = case_lines(a_case(), context(time="offsets"))

    assert "- Visits: 2, on day 0, 2\n" in lines
    assert "2119" not in lines


def test_visits_without_dates_are_hours_since_admission():
    lines = case_lines(a_case(visit_labels=("12 h", "24 h")), context(has_dates=False))

    assert "- Visits: 2, at 12 h, 24 h since admission\n" in lines


def test_a_code_without_a_word_is_refused():
    case = a_case(values=np.array([[3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))

    with pytest.raises(DataError, match=r"'Coma scale' among \[1.0, 2.0\], got 3.0"):
        case_lines(case, context())


def test_features_stand_in_another_order_where_one_is_asked_for():
    features = tuple(Feature(name=f"f{i}") for i in range(20))
    case = a_case(visit_labels=("d",), visit_days=(0.0,), values=np.arange(20.0)[None])
    plain = context(features=features)
    order = FeatureOrder(share=0.25, seed=1)

    before = question_decomposition_prompt(case, plain).split("\n")
    after = question_decomposition_prompt(case, replace(plain, order=order)).split("\n")

    moved = [line for line, old in zip(after, before, strict=True) if line != old]
    assert sorted(after) == sorted(before)
    assert len(moved) == 5
    assert all(line.startswith("- f") for line in moved)
    assert [f"- f{i}: [{float(i)}]" for i in order.of("p1", 20)] == after[-20:]


def test_the_horizon_of_readmission_is_said():
    assert "is readmitted within 30 days of discharge" in question_decomposition_prompt(
        a_case(), context(task=Task.READMISSION)
    )


@pytest.mark.parametrize(
    "build", [question_decomposition_prompt, vanilla_prompt, think_prompt, think_json_prompt]
)
def test_instructions_are_the_same_for_all_patients_and_come_first(build):
    one = build(a_case(), context())
    other = build(a_case(patient_id="p2", sex=Sex.MALE, age=30.0), context())

    instructions, case = one.split("\n\nPatient:\n")
    assert other.split("\n\nPatient:\n")[0] == instructions
    whole = build is think_json_prompt
    assert case == case_lines(a_case(), context(units=whole, reference_ranges=whole))


def test_the_worked_example_is_a_readable_trajectory():
    prompt = question_decomposition_prompt(a_case(), context())

    parsed = parse_trajectory(prompt)

    assert parsed.failure is None
    assert len(parsed.features) == 5
    assert len(parsed.steps) == 1


def test_without_the_worked_example_the_layout_stands_in_its_place():
    prompt = question_decomposition_prompt(a_case(), context(worked_example=False))

    assert "<Final answer>\n0.XX\n</Final answer>" in prompt
    assert "0.72" not in prompt


@pytest.mark.parametrize(
    "build",
    [
        question_decomposition_prompt,
        short_answer_prompt,
        vanilla_prompt,
        think_prompt,
        think_json_prompt,
        lambda *of: usefulness_prompt(*of).head + "<Subquestion 1>" + usefulness_prompt(*of).tail,
    ],
)
def test_a_prompt_has_no_blanks_at_its_ends_which_some_chat_templates_would_strip(build):
    message = build(a_case(), context())

    assert message == message.strip()


def test_usefulness_prompts_of_a_patient_begin_alike():
    prompt = usefulness_prompt(a_case(), context())

    assert case_lines(a_case(), context()) in prompt.head
    assert "1 (useless) to 100" in prompt.head
    assert prompt.tail.endswith("from 1 to 100.")


def test_no_builder_takes_what_only_a_reward_may_see():
    builders = [f for _, f in inspect.getmembers(prompts, inspect.isfunction)]
    parameters = {p for f in builders for p in inspect.signature(f).parameters}

    assert parameters.isdisjoint({"label", "labels", "salient_features", "cohort"})
    assert "RewardContext" not in inspect.getsource(prompts)


CARRIED = "the last one measured before it, carried forward."
"""Of the sentence that says so."""


def three_visits(**changes):
    fields = {
        "visit_labels": ("d1", "d2", "d3"),
        "visit_days": (0.0, 1.0, 2.0),
        "values": np.array(
            [[NAN, 484.0, NAN, 7.1], [2.0, NAN, NAN, NAN], [NAN, 178.0, NAN, NAN]],
        ),
    }
    return a_case(**fields | changes)


def test_values_are_carried_forward_within_a_patient():
    carried = case_lines(three_visits(), context(missing="locf")).split("\n")[3:]

    assert carried == [
        "- Coma scale: [unknown, Oriented, Oriented]",
        "- Glucose: [484.0, 484.0, 178.0]",
        "- Height: [NaN, NaN, NaN]",
        "- pH: [7.1, 7.1, 7.1]",
    ]
    assert "- Glucose: [484.0, NaN, 178.0]" in case_lines(three_visits(), context())


def test_what_is_carried_forward_is_the_patients_own_and_never_from_a_later_visit():
    section = PromptSection(missing="locf")
    first, second = three_visits(), three_visits(patient_id="p2", values=np.full((3, 4), NAN))

    shown = shown_case(first, section)

    expected = [[NAN, 484.0, NAN, 7.1], [2.0, 484.0, NAN, 7.1], [2.0, 178.0, NAN, 7.1]]
    np.testing.assert_array_equal(shown.values, expected)
    assert np.isnan(first.values).sum() == 8, "the record itself stays"
    assert np.isnan(shown_case(second, section).values).all()
    np.testing.assert_array_equal(shown_case(shown, section).values, shown.values)
    assert shown_case(first, PromptSection()) is first


@pytest.mark.parametrize(
    "build",
    [
        question_decomposition_prompt,
        short_answer_prompt,
        vanilla_prompt,
        think_prompt,
        think_json_prompt,
        lambda case, context: usefulness_prompt(case, context).head,
    ],
)
def test_every_prompt_says_that_values_are_carried_forward_where_they_are(build):
    assert build(three_visits(), context(missing="locf")).count(CARRIED) == 1
    assert CARRIED not in build(three_visits(), context())


def test_the_json_form_shows_an_example_units_and_ranges_whatever_the_options_say():
    prompt = think_json_prompt(a_case(), context())

    line = next(line for line in prompt.split("\n") if line.startswith("{"))
    assert json.loads(line)["answer"] == 0.72
    assert parse_think_json(line).probability == 0.72
    assert "- Glucose (mg/dL; normal 70-99.5): [484.0, 178.0]" in prompt
    assert '{"think": "reasoning", "answer": 0.XX}' in think_json_prompt(
        a_case(), context(worked_example=False)
    )


def long_case(num_visits=6):
    return a_case(
        visit_labels=tuple(f"2119-12-{i + 10}" for i in range(num_visits)),
        visit_days=tuple(float(i) for i in range(num_visits)),
        values=np.full((num_visits, 4), 1.0),
    )


def render(case):
    return case_lines(case, context())


def test_a_case_that_fits_is_left_alone():
    case = long_case()

    assert fit_case(case, render, len, len(render(case))) is case


def test_the_oldest_visits_leave_and_their_number_is_said():
    case = long_case()
    limit = len(render(case)) - 1

    fitted = fit_case(case, render, len, limit)

    assert fitted.visit_labels == case.visit_labels[-fitted.num_visits :]
    assert fitted.num_earlier_visits == 6 - fitted.num_visits > 0
    assert f"- Visits: {fitted.num_visits} ({fitted.num_earlier_visits} earlier left out), on" in (
        render(fitted)
    )
    assert len(render(fitted)) <= limit


def test_as_many_visits_as_fit_are_kept():
    lengths = {k: len(render(fit_case(long_case(), render, len, k))) for k in range(150, 260)}

    assert all(length <= limit for limit, length in lengths.items())
    assert sorted(lengths.values()) == list(lengths.values())


def test_a_single_visit_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="to fit into 10 tokens, patient 'p1' needs"):
        fit_case(long_case(), render, len, 10)
