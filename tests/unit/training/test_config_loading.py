from pathlib import Path

import pytest

from ehr.errors import ConfigurationError
from training.config_loading import load_config

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    "file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_shipped_configuration_is_valid(file):
    base = [] if file.parent == CONFIGS else [CONFIGS / "demo.yaml"]

    config = load_config([*base, file])

    assert config.run.name == (base[0].stem if base else file.stem)


def test_later_files_and_arguments_win_key_by_key():
    config = load_config(
        [CONFIGS / "demo.yaml", CONFIGS / "presets" / "dapo.yaml"], ["grpo.steps=5"]
    )

    assert config.grpo.method == "stage1_dapo"
    assert config.grpo.clip_high_min == 0.28
    assert config.grpo.group_size == 8
    assert config.grpo.steps == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.num_rollout=3", "did you mean 'search.num_rollouts'"),
        ("serch.num_rollouts=3", "unknown configuration key 'serch'; did you mean 'search'"),
        ("num_rollouts.x=3", "did you mean 'search.num_rollouts'"),
        ("search=3", "an override is section.key=value"),
        ("search.num_rollouts=abc", "search.num_rollouts: Input should be a valid integer"),
        ("search.num_rollouts=0", "greater than or equal to 1"),
        ("search.answers=", "search.answers"),
        ("=3", "an override is section.key=value"),
        ("grpo.updates_per_step=1", "the clip is inert"),
        ("expert.members=3", "must be 1 or even"),
        ("model.max_model_len=512", "model.max_model_len"),
    ],
)
def test_wrong_overrides_are_refused_with_the_fix(override, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_config([CONFIGS / "demo.yaml"], [override])

    assert expected in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "demo.yaml").write_text("cohort:\n  seed: 1\n")

    with pytest.raises(ConfigurationError, match=r"did you mean .*demo\.yaml"):
        load_config([tmp_path / "demos.yaml"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "cohort: [", "cohort: 3\n"])
def test_a_file_that_is_no_tree_of_sections_is_refused(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)

    with pytest.raises(ConfigurationError):
        load_config([file])


def test_the_configuration_page_is_current():
    from training.config_reference import TARGET, render

    assert TARGET.read_text() == render(), "run `python -m training.config_reference`"


def test_a_short_answer_is_not_searched_by_a_tree():
    expected = r"does not fit: \w.*search\.method=samples"  # of no one setting
    with pytest.raises(ConfigurationError, match=expected):
        load_config([CONFIGS / "demo.yaml"], ["prompt.kind=short_answer"])

    found = load_config(
        [CONFIGS / "demo.yaml"], ["prompt.kind=short_answer", "search.method=samples"]
    )
    assert found.search.method == "samples"


def test_another_test_cohort_has_the_task_of_the_run():
    other = ["evaluate.other_cohort.source=synthetic", "evaluate.other_cohort.task=readmission"]
    with pytest.raises(ConfigurationError, match=r"other_cohort\.task must be cohort\.task"):
        load_config([CONFIGS / "demo.yaml"], other)

    found = load_config([CONFIGS / "demo.yaml"], [*other, "cohort.task=readmission"])
    assert found.evaluate.other_cohort is not None
    assert found.evaluate.other_cohort.source == "synthetic"
