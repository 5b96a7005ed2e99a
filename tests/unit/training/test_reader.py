"""The small model that reads records: what it is taught, and that a run can use it."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ehr.answers.grounding import GroundingChecker
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.synthetic import generate
from ehr.config import CohortSection
from ehr.errors import ConfigurationError
from ehr.language.prompts import USEFULNESS_OPENING
from ehr.language.trajectory import parse_trajectory, reasoning_of
from services.config import ModelSection
from services.models import load_tokenizer, resolve_model
from tests.physionet2012_files import stays_of, write_folder
from training.cli import main
from training.config.run import RunConfig
from training.reader.lessons import Naming, Part
from training.reader.patients import (
    OTHER_PATIENTS,
    generated_alike,
    other_patients,
    resampled,
)
from training.reader.tokens import _ASSISTANT
from training.reader.train import (
    ReaderSize,
    lesson_maker,
    write_reader,
)
from training.run.progress import Display

CONFIG = RunConfig.model_validate(
    {
        "cohort": {"num_visits": 1},
        "prompt": {"kind": "short_answer", "feature_names": "listed", "worked_example": False},
        "search": {"method": "samples"},
    }
)
SIZE = ReaderSize(patients=192, batch=16, hidden=32, layers=1, learning_rate=1e-2)
SILENT = Display.silent()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    write_reader(CONFIG, folder, SIZE, SILENT)
    return folder


@pytest.fixture(scope="module")
def taught(reader):
    section = CONFIG.cohort.model_copy(update={"num_patients": 40, "seed": OTHER_PATIENTS})
    cohort = generate(section)
    return cohort, lesson_maker(cohort, CONFIG, reader).lessons(1)


def test_an_answer_names_five_recorded_features_and_sides_with_the_outcome(reader, taught):
    tokenizer = load_tokenizer(reader)
    cohort, lessons = taught
    for (patient, case), lesson in zip(cohort.cases.items(), lessons, strict=True):
        names = text_of(tokenizer, lesson, Part.NAMES).strip().split(", ")
        probability = float(text_of(tokenizer, lesson, Part.PROBABILITY))
        assert len(set(names)) == 5
        for name in set(names) - {"Age"}:
            column = [feature.name for feature in cohort.features].index(name)
            assert (case.values[:, column] == case.values[:, column]).any()
        assert (probability >= 0.5) if cohort.labels[patient] else (probability <= 0.5)


def test_every_token_of_the_record_counts_and_none_of_the_instructions(reader, taught):
    tokenizer = load_tokenizer(reader)
    for lesson in taught[1]:
        assert text_of(tokenizer, lesson, Part.RECORD).startswith(
            ("- Sex", "male", "female", "Sex")
        )
        told = text_of(tokenizer, lesson, Part.NOTHING)
        assert "Give a probability" in told
        assert told.endswith("</Final answer>")


def test_it_learns(reader, taught):
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(model.config)
    for part in (Part.RECORD, Part.NAMES, Part.PROBABILITY):
        assert loss(model, taught[1], part) < loss(untrained, taught[1], part) - 1


def test_the_same_seed_gives_the_same_model(reader, tmp_path):
    write_reader(CONFIG, tmp_path, SIZE, SILENT)
    first, again = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (reader, tmp_path)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_can_use_its_folder(reader, taught, tmp_path):
    section = ModelSection(name=str(reader), cache_dir=str(tmp_path))
    frame = resolve_model(section).chat
    tokenizer = load_tokenizer(reader)
    for lesson in taught[1][:3]:
        text = tokenizer.decode(lesson.token_ids)
        assert text.startswith(frame.prefix + "Predict from this record")
        assert frame.suffix + "<Important Features>" in text


@pytest.fixture(scope="module")
def stays(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("stays"), stays_of(120))
    section = {"source": "physionet2012", "path": str(folder), "train_patients": 40}
    return CONFIG.model_copy(update={"cohort": CohortSection.model_validate(section)})


def test_of_a_real_cohort_it_reads_about_those_whom_the_experiment_leaves_out(stays):
    known = build_cohort(stays.cohort)
    everybody = build_cohort(stays.cohort.model_copy(update={"train_patients": None}))

    others = other_patients(stays.cohort, num_generated=0)

    labelled = {*everybody.splits["train"], *everybody.splits["val"]}
    assert set(others.cases) == labelled - set(known.cases)
    assert len(others.cases) >= 40
    assert others.labels == {patient: everybody.labels[patient] for patient in others.cases}
    assert not set(others.cases) & set(everybody.splits["test"])


def test_of_a_short_record_it_also_names_what_is_missing(stays, reader):
    tokenizer = load_tokenizer(reader)
    others = other_patients(stays.cohort, num_generated=0)
    for lesson in lesson_maker(others, stays, reader).lessons(1):
        names = text_of(tokenizer, lesson, Part.NAMES).strip().split(", ")
        assert len(set(names)) == 5
        assert {"Age", "Heart Rate", "Height", "Weight"} < set(names)


def test_a_further_epoch_has_other_names_of_the_same_patients(reader, taught):
    cohort, lessons = taught
    again = lesson_maker(cohort, CONFIG, reader).lessons(2)
    tokenizer = load_tokenizer(reader)
    for part, same in ((Part.RECORD, True), (Part.NAMES, False)):
        before = [text_of(tokenizer, lesson, part) for lesson in lessons]
        after = [text_of(tokenizer, lesson, part) for lesson in again]
        assert (before == after) is same


def test_generated_stays_have_the_layout_of_the_real_ones_and_no_values_of_their_own(stays, reader):
    others = other_patients(stays.cohort, num_generated=0)
    alike = generated_alike(others, stays.cohort, 60)

    assert alike.features == others.features
    assert {case.visit_labels[0] for case in alike.cases.values()} == {"12 h"}
    assert max(case.num_visits for case in alike.cases.values()) == 4
    generated = generate(
        CohortSection(num_patients=60, num_visits=4, seed=stays.cohort.seed + OTHER_PATIENTS)
    )
    own = [feature.name for feature in generated.features]
    for patient, case in alike.cases.items():
        for feature, values in zip(alike.features, case.values.T, strict=True):
            if feature.name in own:
                expected = generated.cases[patient].values[:, own.index(feature.name)]
                np.testing.assert_array_equal(values, expected)
            else:
                assert np.isnan(values).all()
    tokenizer = load_tokenizer(reader)
    lesson = lesson_maker(alike, stays, reader).lessons(1)[0]
    assert "h since admission\n" in tokenizer.decode(lesson.token_ids)


def test_generated_stays_of_a_cohort_with_other_features_are_refused(stays):
    others = other_patients(stays.cohort, num_generated=0)
    strange = tuple(
        dataclasses.replace(feature, name=f"strange {feature.name}") for feature in others.features
    )
    with pytest.raises(ConfigurationError, match="use --resampled instead"):
        generated_alike(dataclasses.replace(others, features=strange), stays.cohort, 30)


def test_a_resampled_patient_has_each_feature_of_a_patient_with_its_outcome():
    cohort = generate(CohortSection(num_patients=40, num_visits=3))

    made = resampled(cohort, 60, seed=1)

    assert len(made.cases) == len(made.labels) == 60
    assert len({case.values.tobytes() for case in made.cases.values()}) > 50
    for patient, case in made.cases.items():
        alike = [p for p in cohort.cases if cohort.labels[p] == made.labels[patient]]
        assert len(case.visit_labels) == case.num_visits == len(case.values)
        for column, values in enumerate(case.values.T):
            assert any(
                np.array_equal(
                    values, ends_like(cohort.cases[p].values[:, column], len(values)), True
                )
                for p in alike
            )


def ends_like(values, length):
    """The last `length` values, missing where there are fewer."""
    return np.concatenate([np.full(length, np.nan), values])[-length:]


def test_the_same_seed_resamples_the_same_patients_and_another_others():
    cohort = generate(CohortSection(num_patients=40))
    first, again, other = (resampled(cohort, 20, seed=seed) for seed in (1, 1, 2))
    assert first.labels == again.labels
    for patient, case in first.cases.items():
        np.testing.assert_array_equal(case.values, again.cases[patient].values)
    assert any(
        case.values.tobytes() != other.cases[patient].values.tobytes()
        for patient, case in first.cases.items()
    )


@pytest.mark.parametrize("kind", ["generated", "resampled"])
def test_a_reader_of_real_stays_can_read_about_made_ones_first(stays, kind, tmp_path):
    write_reader(stays, tmp_path / "first", dataclasses.replace(SIZE, **{kind: 64}), SILENT)
    write_reader(stays, tmp_path / "without", SIZE, SILENT)
    first, without = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("first", "without")
    )
    assert not all(torch.equal(first[name], without[name]) for name in first)


def test_a_real_cohort_of_which_nobody_is_left_out_is_refused(stays, tmp_path):
    cohort = stays.cohort.model_copy(update={"train_patients": None})
    config = stays.model_copy(update={"cohort": cohort})
    with pytest.raises(ConfigurationError, match=r"expected cohort\.train_patients, got null"):
        write_reader(config, tmp_path / "model", SIZE, SILENT)
    assert not (tmp_path / "model").exists()


def test_a_real_cohort_of_which_all_train_is_refused(stays, tmp_path):
    everybody = build_cohort(stays.cohort.model_copy(update={"train_patients": None}))
    num = len(everybody.splits["train"])
    cohort = stays.cohort.model_copy(update={"train_patients": num})
    with pytest.raises(ConfigurationError, match=f"got all {num} of them"):
        other_patients(cohort, num_generated=0)


@pytest.mark.parametrize(("patients", "epochs"), [(63, 1), (30, 2)])
def test_fewer_lessons_than_a_batch_are_refused_instead_of_an_untrained_model(
    patients, epochs, tmp_path
):
    size = dataclasses.replace(SIZE, patients=patients, epochs=epochs, batch=64)
    with pytest.raises(ConfigurationError) as refused:
        write_reader(CONFIG, tmp_path / "model", size, SILENT)
    for words in (
        "at least 64 lessons",
        f"got {patients * epochs}",
        "--epochs",
        "--resampled",
        "cohort.train_patients",
    ):
        assert words in str(refused.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cohort.patients=3"], "unknown configuration key 'cohort.patients'"),
        (["cohort.path=nowhere"], "expected cohort.train_patients"),
        (["cohort.path=nowhere", "cohort.train_patients=40"], "nowhere"),
        (["second_folder"], "one configuration and one folder, got 3 names"),
    ],
)
def test_the_command_says_in_a_line_what_it_cannot_work_with(overrides, words, tmp_path, capsys):
    config = tmp_path / "experiment.yaml"
    config.write_text("cohort: {source: physionet2012}")
    given = [str(config), str(tmp_path / "model"), *overrides]

    assert main(["reader", *given]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--patients", "0"], "must be 1 or more, got 0"),
        (["--epochs", "-1"], "must be 1 or more, got -1"),
        (["--resampled", "-5"], "must be 0 or more, got -5"),
        (["--seed", "x"], "invalid whole number value: 'x'"),
        (["--naming", "odd"], "invalid choice: 'odd'"),
    ],
)
def test_an_option_that_makes_no_reader_is_refused_before_any_work(option, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reader", "experiment.yaml", str(tmp_path / "model"), *option])

    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_unusual_values_are_named_sooner_where_that_is_asked_for(reader, taught):
    cohort, lessons = taught
    tokenizer = load_tokenizer(reader)
    values = np.array([[case.age, *case.values[-1]] for case in cohort.cases.values()], float)
    unusual = np.abs(values - np.nanmean(values, 0)) / np.nanstd(values, 0)
    names = ["Age", *(feature.name for feature in cohort.features)]

    def named(lessons):
        found = []
        for row, lesson in zip(unusual, lessons, strict=True):
            own = text_of(tokenizer, lesson, Part.NAMES).strip().split(", ")
            assert len(set(own)) == 5
            found.append(np.nanmean([row[names.index(name)] for name in own]))
        return np.mean(found)

    sooner = lesson_maker(cohort, CONFIG, reader, Naming.ABNORMAL).lessons(1)
    assert named(sooner) > named(lessons) + 0.2


def text_of(tokenizer, lesson, part):
    chosen = [t for t, p in zip(lesson.token_ids, lesson.parts, strict=True) if p == part]
    return tokenizer.decode(chosen)


@torch.no_grad()
def loss(model, lessons, part):
    found = []
    for lesson in lessons[:20]:
        tokens = torch.tensor(lesson.token_ids)
        logp = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        scores = logp[:-1].gather(1, tokens[1:, None])[:, 0]
        found.append(-scores[torch.tensor(lesson.parts)[1:] == part].mean())
    return float(torch.stack(found).mean())


STEPS = RunConfig.model_validate(
    {
        "cohort": {"num_visits": 1},
        "prompt": {"feature_names": "listed", "worked_example": False},
        "search": {"max_depth": 4},
    }
)


@pytest.fixture(scope="module")
def reader_with_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader-steps")
    write_reader(STEPS, folder, SIZE, SILENT)
    return folder


@pytest.fixture(scope="module")
def lessons_with_steps(reader_with_steps):
    section = STEPS.cohort.model_copy(update={"num_patients": 120, "seed": OTHER_PATIENTS})
    cohort = generate(section)
    lessons = lesson_maker(cohort, STEPS, reader_with_steps).lessons(1)
    return cohort, list(zip(cohort.cases, lessons, strict=True))


def test_steps_ask_about_recorded_features_and_the_final_names_those_first(
    reader_with_steps, lessons_with_steps
):
    tokenizer = load_tokenizer(reader_with_steps)
    cohort, lessons = lessons_with_steps
    checker = GroundingChecker(cohort.features, FeatureMatcher(cohort.features))
    num_claims = 0
    for patient, lesson in lessons:
        if Part.SCORE in lesson.parts:
            continue
        text = tokenizer.decode(lesson.token_ids).split(_ASSISTANT)[-1]
        parsed = parse_trajectory(text)
        asked = [step.question.removeprefix("What is ").rstrip("?") for step in parsed.steps]
        assert parsed.failure is None
        assert parsed.features[: len(asked)] == tuple(asked)
        assert len(set(parsed.features)) == 5
        found = checker.check(reasoning_of(text), cohort.cases[patient])
        assert not found.wrong
        num_claims += len(found.claims)
    assert num_claims > 50


def test_with_steps_some_lessons_are_usefulness_scores(reader_with_steps, lessons_with_steps):
    tokenizer = load_tokenizer(reader_with_steps)
    scores = [lesson for _, lesson in lessons_with_steps[1] if Part.SCORE in lesson.parts]
    assert 5 < len(scores) < 60
    for lesson in scores:
        number = text_of(tokenizer, lesson, Part.SCORE).removesuffix("<|end|>")
        assert 1 <= int(number) <= 100
        assert USEFULNESS_OPENING in tokenizer.decode(lesson.token_ids)
