"""Masked answers of scripted language models: what is asked, read and concluded."""

import asyncio
import re

import pandas as pd
import pytest

from actors.case_prompts import case_prompt
from actors.rollouts import RolloutBatch, RolloutPlan, RolloutPrompt, RolloutSampler
from ehr.answers.faithfulness import Unjudged
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import Cohort
from ehr.config import Task
from services.types import BASE_POLICY
from tests.scripted import CONTEXT, FEATURES, FRAME, CharTokenizer, ScriptedGenerator, case_of
from training.evaluation.answers import AnswerParser, Answers
from training.evaluation.masking import MASKED_COLUMNS, faithfulness_summary, masked_rows

PATIENTS = tuple(f"p{number}" for number in range(6))
PLAN = RolloutPlan(
    format="guided",
    kind="question_decomposition",
    max_depth=1,
    max_new_tokens=600,
    temperature=0.0,
)


def cohort():
    return Cohort(
        name="scripted",
        task=Task.MORTALITY,
        horizon_days=30,
        features=CONTEXT.features,
        cases={patient: case_of(patient) for patient in PATIENTS},
        labels={patient: number % 2 for number, patient in enumerate(PATIENTS)},
        splits={"train": PATIENTS, "val": (), "test": PATIENTS},
        has_dates=True,
    )


@pytest.fixture(scope="module")
def reader():
    whole = cohort()
    return AnswerParser(
        cohort=whole,
        matcher=FeatureMatcher(whole.features),
        salient=dict.fromkeys(PATIENTS, frozenset(FEATURES[:5])),
    )


class ScriptedAsker:
    """Asks a scripted model as evaluation asks a served one."""

    def __init__(self, script):
        self.generator = ScriptedGenerator(script=script)

    def __call__(self, cases):
        tokenizer = CharTokenizer()
        shown = {
            patient: case_prompt(case, "question_decomposition", CONTEXT, tokenizer, FRAME)
            for patient, case in cases.items()
        }
        batch = RolloutBatch(
            prompts=tuple(
                RolloutPrompt(patient_id=patient, token_ids=prompt.token_ids)
                for patient, prompt in shown.items()
            ),
            group_size=1,
            least=BASE_POLICY,
            seed=3,
        )
        sampler = RolloutSampler(self.generator, tokenizer, PLAN)
        groups = asyncio.run(sampler.sample_groups(batch))
        return Answers(
            kind="question_decomposition",
            texts={group[0].patient_id: (group[0].text, group[0].truncated) for group in groups},
            shown={patient: prompt.case for patient, prompt in shown.items()},
        )


def is_recorded(prompt, feature):
    """Whether the patient's own line (the last one: an example may come before) has a value."""
    return "NaN" not in re.findall(rf"- {feature}[^:\n]*: \[([^\]]*)\]", prompt)[-1]


def names_ph(probability):
    """A model that names pH alone and predicts what a function of its prompt says."""

    def script(call):
        match call.kind:
            case "choice":
                return "F"
            case "features":
                return "pH, Age\n"
            case "probability":
                return f"{probability(call.prompt):.2f}\n"
            case _:
                return "nothing else\n"

    return script


def judge(reader, script, patients=PATIENTS):
    ask = ScriptedAsker(script)
    cases = {patient: reader.cohort.cases[patient] for patient in patients}
    original = reader.rows("eag_rl", ask(cases))
    num_first = len(ask.generator.requests)
    rows = masked_rows(reader, original, cases, ask, seed=1)
    return rows, ask.generator.requests[num_first:]


def test_a_model_that_reads_the_feature_it_names_is_faithful(reader):
    rows, _ = judge(reader, names_ph(lambda prompt: 0.9 if is_recorded(prompt, "pH") else 0.4))

    summary = faithfulness_summary(rows, 200, seed=1)["eag_rl"]

    assert tuple(rows.columns) == MASKED_COLUMNS
    assert set(rows["named"]) == {"pH"}
    assert summary["named_change"] == pytest.approx(0.5)
    assert summary["unnamed_change"] == 0
    assert summary["difference_low"] == pytest.approx(0.5)
    assert summary["share_named_more"] == 1
    assert (summary["num_judged"], summary["unjudged"]) == (len(PATIENTS), {})


def test_a_model_that_reads_what_it_does_not_name_is_unfaithful(reader):
    others = [name for name in FEATURES if name != "pH"]
    rows, _ = judge(
        reader,
        names_ph(lambda prompt: 0.9 if all(is_recorded(prompt, name) for name in others) else 0.4),
    )

    summary = faithfulness_summary(rows, 200, seed=1)["eag_rl"]

    assert summary["difference"] == pytest.approx(-0.5)
    assert summary["share_named_more"] == 0


def test_a_model_that_ignores_the_record_has_an_effect_of_exactly_zero(reader):
    rows, _ = judge(reader, names_ph(lambda prompt: 0.7))

    summary = faithfulness_summary(rows, 200, seed=1)["eag_rl"]

    assert (summary["named_change"], summary["unnamed_change"], summary["difference"]) == (0, 0, 0)
    assert (summary["difference_low"], summary["difference_high"]) == (0, 0)
    assert (summary["share_named_more"], summary["share_equal"]) == (0, 1)


def test_masked_prompts_differ_from_the_original_in_one_line(reader):
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    cases = {"p0": reader.cohort.cases["p0"]}
    original = reader.rows("eag_rl", ask(cases))
    first = "".join(map(chr, ask.generator.requests[0].prompt_token_ids)).splitlines()

    row = masked_rows(reader, original, cases, ask, seed=1).iloc[0]

    prompts = {
        tuple("".join(map(chr, request.prompt_token_ids)).splitlines()[: len(first)])
        for request in ask.generator.requests
        if len(request.prompt_token_ids) >= len("\n".join(first)) - 40
    }
    changed = {
        line
        for prompt in prompts
        for line, before in zip(prompt, first, strict=False)
        if line != before and line.startswith("- ")
    }
    assert changed == {f"- {row['named']}: [NaN, NaN]", f"- {row['unnamed']}: [NaN, NaN]"}


def test_masked_answers_are_sampled_like_the_original(reader):
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    cases = {"p0": reader.cohort.cases["p0"]}
    original = reader.rows("eag_rl", ask(cases))
    before = [request.sampling for request in ask.generator.requests]

    masked_rows(reader, original, cases, ask, seed=1)

    after = [request.sampling for request in ask.generator.requests[len(before) :]]
    assert after == before + before
    assert {sampling.temperature for sampling in after} == {0.0}


def test_an_unreadable_answer_is_not_asked_about_again(reader):
    cases = {"p0": reader.cohort.cases["p0"]}
    garbage = Answers(kind="question_decomposition", texts={"p0": ("garbage", False)}, shown=cases)
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))

    rows = masked_rows(reader, reader.rows("eag_rl", garbage), cases, ask, seed=1)

    assert ask.generator.requests == []
    assert list(rows["unjudged"]) == [Unjudged.UNREADABLE_ANSWER]


def and_more(answers, *texts):
    """The same answers with further samples of each patient."""
    more = dict.fromkeys(answers.texts, tuple((text, False) for text in texts))
    return Answers(kind=answers.kind, texts=answers.texts, more=more, shown=answers.shown)


def test_samples_that_cannot_be_read_move_no_answer(reader):
    cases = {"p0": reader.cohort.cases["p0"]}
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    original = reader.rows("eag_rl", and_more(ask(cases), "garbage"))

    rows = masked_rows(reader, original, cases, ask, seed=1)

    # the base rate in the mean of .7 and garbage is nothing that was said
    assert original["probability"].iloc[0] != pytest.approx(0.7)
    assert rows[["original", "without_named"]].to_numpy().tolist() == [[0.7, 0.7]]


def test_names_of_an_unreadable_first_answer_are_not_asked_about(reader):
    cases = {"p0": reader.cohort.cases["p0"]}
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    readable = ask(cases).texts["p0"][0]
    garbage = Answers(kind="question_decomposition", texts={"p0": ("garbage", False)}, shown=cases)

    rows = masked_rows(
        reader, reader.rows("eag_rl", and_more(garbage, readable)), cases, ask, seed=1
    )

    assert list(rows["unjudged"]) == [Unjudged.UNREADABLE_ANSWER]


def test_an_unreadable_masked_answer_is_counted(reader):
    cases = {"p0": reader.cohort.cases["p0"]}
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    original = reader.rows("eag_rl", ask(cases))

    def broken(masked):
        return Answers(
            kind="question_decomposition", texts={"p0": ("garbage", False)}, shown=masked
        )

    rows = masked_rows(reader, original, cases, broken, seed=1)

    assert list(rows["unjudged"]) == [Unjudged.UNREADABLE_MASKED]
    assert list(rows["text_without_named"]) == ["garbage"]
    assert faithfulness_summary(rows, 200, seed=1)["eag_rl"]["num_judged"] == 0


def test_a_masked_prompt_that_shows_fewer_visits_is_not_compared(reader):
    cases = {"p0": reader.cohort.cases["p0"]}
    ask = ScriptedAsker(names_ph(lambda prompt: 0.7))
    original = reader.rows("eag_rl", ask(cases))

    def shortened(masked):
        answers = ask(masked)
        case = masked["p0"]
        one_visit = type(case)(
            patient_id="p0",
            sex=case.sex,
            age=case.age,
            visit_labels=case.visit_labels[1:],
            visit_days=case.visit_days[1:],
            values=case.values[1:],
        )
        return Answers(kind=answers.kind, texts=answers.texts, shown={"p0": one_visit})

    rows = masked_rows(reader, original, cases, shortened, seed=1)

    assert list(rows["unjudged"]) == [Unjudged.OTHER_VISITS]


def test_rows_survive_parquet(reader, tmp_path):
    rows, _ = judge(reader, names_ph(lambda prompt: 0.9 if is_recorded(prompt, "pH") else 0.4))
    rows.to_parquet(tmp_path / "rows.parquet")

    read = pd.read_parquet(tmp_path / "rows.parquet")

    assert faithfulness_summary(read, 200, seed=1) == faithfulness_summary(rows, 200, seed=1)
