from pathlib import Path

import pytest

from ehr.errors import ConfigurationError
from training.config.loading import load_config
from training.config.run import RunConfig

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    "file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_shipped_configuration_is_valid(file):
    base = [] if file.parent == CONFIGS else [CONFIGS / "smollm2_demo.yaml"]

    config = load_config([*base, file])

    assert config.run.name == (base[0].stem if base else file.stem)


def test_later_files_and_arguments_win_key_by_key():
    config = load_config(
        [CONFIGS / "smollm2_demo.yaml", CONFIGS / "presets" / "dapo.yaml"], ["grpo.steps=5"]
    )

    assert config.grpo.method == "stage1_dapo"
    assert config.grpo.clip_high_min == 0.28
    assert config.grpo.group_size == 8
    assert config.grpo.steps == 5


@pytest.mark.parametrize(
    "files",
    [
        ("presets/paper.yaml", "demo.yaml"),
        ("demo.yaml", "presets/paper.yaml", "tiny.yaml"),
        ("presets/dapo.yaml", "presets/one_gpu.yaml", "demo.yaml"),
    ],
)
def test_a_preset_before_a_configuration_is_refused(files):
    with pytest.raises(ConfigurationError, match=r"a preset, which is given behind .*\.yaml"):
        load_config([CONFIGS / file for file in files])


@pytest.mark.parametrize("name", ["run.name", "model.cache_dir", "search.num_patients"])
def test_none_is_written_null(name):
    with pytest.raises(ConfigurationError, match="write null"):
        load_config([CONFIGS / "smollm2_demo.yaml"], [f"{name}=None"])


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
        ("cohort.horizon_days=90", "cohort.task=readmission"),
        ("prompt.feature_order_shuffle=0.5", "called 'evaluate.feature_order_shuffle' now"),
        ("evaluate.feature_order_shuffle=25", "less than or equal to 1, got 25"),
        ("evaluate.feature_order_shuffle=[0.5,0.5]", "must name each once"),
        ("evaluate.feature_order_seed=[]", "evaluate.feature_order_seed"),
        ("evaluate.feature_order_seed=[1,1]", "must name each once"),
        ("cluster.address=http://127.0.0.1:8265", "cluster.address must be HOST:PORT"),
    ],
)
def test_wrong_overrides_are_refused_with_the_fix(override, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_config([CONFIGS / "smollm2_demo.yaml"], [override])

    assert expected in str(caught.value)


def seeds() -> list[str]:
    """Every setting that is a seed."""
    return [
        f"{name}.{key}"
        for name, section in RunConfig().model_dump().items()
        for key in section
        if key.endswith("seed")
    ]


@pytest.mark.parametrize("value", ["-1", "4294967296", "1.5"])
@pytest.mark.parametrize("seed", [*seeds(), "learn.seeds", "evaluate.other_cohort.seed"])
def test_a_seed_that_no_generator_takes_is_refused(seed, value):
    override = f"{seed}=[17, {value}]" if seed == "learn.seeds" else f"{seed}={value}"

    with pytest.raises(ConfigurationError, match=rf"{seed}: Input should be .*, got {value}"):
        load_config([CONFIGS / "tiny.yaml"], [override])


def test_the_largest_seed_is_taken():
    assert load_config([], ["cohort.seed=4294967295"]).cohort.seed == 2**32 - 1


@pytest.mark.parametrize("part", ["18]", "stage1,"])
def test_a_part_of_a_list_that_blanks_tore_is_refused_with_the_fix(part):
    with pytest.raises(ConfigurationError, match="quote the whole argument"):
        load_config([CONFIGS / "smollm2_demo.yaml", Path(part)], ["learn.seeds=[17,"])


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search:\n  seed: 1\nsft:\n  epochs: 1\nsearch:\n  seed: 2\n", "'search' .*1 .*line 5"),
        ("search:\n  seed: 1\n  'seed': 2\n", "'seed' stands in line 2 and again in line 3"),
        ("search: {seed: 1, num_rollouts: 2, seed: 1}\n", "'seed' stands in line 1"),
        ("evaluate:\n  other_cohort:\n    seed: 1\n    seed: 1\n", "'seed' .*3 .*line 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_file_and_lines(tmp_path, text, expected):
    file = tmp_path / "twice.yaml"
    file.write_text(text)

    with pytest.raises(ConfigurationError, match=rf"twice\.yaml: {expected}"):
        load_config([file])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search: &a\n  seed: *a\n", "line 1 begins contains itself"),
        ("evaluate: {methods: &a [vanilla, *a]}\n", "line 1 begins contains itself"),
        (f"search: {{seed: {'1' * 5000}}}\n", "a value is not what it is written as"),
        ("search: {seed: !!int abc}\n", "a value is not what it is written as"),
        ("search: {seed: !!timestamp abc}\n", "a value is not what it is written as"),
        ("search: {balance: !!bool maybe}\n", "a value is not what it is written as"),
    ],
)
def test_yaml_that_cannot_be_a_value_is_refused(tmp_path, text, expected):
    import lmformatenforcer  # noqa: F401  as vLLM does: it changes PyYAML's own SafeLoader

    file = tmp_path / "wrong.yaml"
    file.write_text(text)

    with pytest.raises(ConfigurationError, match=rf"wrong\.yaml is not valid YAML: .*{expected}"):
        load_config([file])


@pytest.mark.parametrize("argument", ["cohort.path=/data/set #1", "run.data_origin=mirror #3"])
def test_an_argument_never_loses_what_would_be_a_comment(argument):
    with pytest.raises(ConfigurationError, match="would be read as a comment; put the value in"):
        load_config([CONFIGS / "smollm2_demo.yaml"], [argument])


def test_an_argument_in_quotes_of_its_own_may_hold_anything():
    found = load_config([CONFIGS / "smollm2_demo.yaml"], ['run.data_origin="mirror #3"'])

    assert found.run.data_origin == "mirror #3"


def test_a_key_of_a_merged_mapping_may_be_given_again(tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text("sft: &one\n  epochs: 4\n  seed: 5\ndirect_sft:\n  <<: *one\n  seed: 6\n")

    found = load_config([file])

    assert (found.sft.seed, found.direct_sft.seed, found.direct_sft.epochs) == (5, 6, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["search.num_rollouts=4", "search.num_rollouts=8"],
        ["evaluate.other_cohort.source=tjh", "evaluate.other_cohort=null"],
        ["evaluate.other_cohort=null", "evaluate.other_cohort.source=tjh"],
        ["evaluate.other_cohort={source: tjh, seed: 1}", "evaluate.other_cohort.seed=2"],
        ["evaluate.other_cohort={source: tjh, source: synthetic}"],
    ],
)
def test_a_setting_that_is_given_twice_in_the_arguments_is_refused(arguments):
    with pytest.raises(ConfigurationError, match=r"twice|stands in line") as caught:
        load_config([CONFIGS / "smollm2_demo.yaml"], arguments)

    assert all(argument in str(caught.value) for argument in arguments)


def test_two_arguments_may_set_different_keys_of_one_section():
    arguments = ["evaluate.other_cohort={source: tjh}", "evaluate.other_cohort.path=/data"]

    found = load_config([CONFIGS / "smollm2_demo.yaml"], arguments).evaluate.other_cohort

    assert found is not None
    assert (found.source, found.path) == ("tjh", "/data")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sft.seed=true", "seed takes no true or false"),
        ("sft.seed=yes", r"sft\.seed: Input should be a valid integer"),
        ("sft.learning_rate=true", "learning_rate takes no true or false"),
        ("learn.seeds=[17, true]", "seeds takes no true or false"),
        ("sft.learning_rate=.nan", r"sft\.learning_rate: Input should be a finite number"),
        ("sft.learning_rate=nan", r"sft\.learning_rate: Input should be a finite number"),
        ("generator.request_timeout_s=.inf", "Input should be a finite number"),
        ("grpo.importance_cap=-.inf", "Input should be"),
        ("sft.epochs=1:30", r"sft\.epochs: Input should be a valid integer"),
        ("sft.epochs=1.5", r"sft\.epochs: Input should be a valid integer"),
        ("grpo.seed=-1", r"grpo\.seed: Input should be greater than or equal to 0"),
        ("grpo.seed=4294967296", r"grpo\.seed: Input should be less than or equal to 4294967295"),
        ("learn.seeds=[-1]", r"learn\.seeds: Input should be greater than or equal to 0"),
        ("search.num_rollouts=4294967296", "num_rollouts must be at most 4294967295, got 42949672"),
        ("learn.train_patients=[10, 1e10]", "train_patients must be at most 4294967295, got 1000"),
        ("cohort.num_patients=1e9", r"cohort\.num_patients: Input should be less than or equal"),
        ("search.num_rollouts.x=4", r"num_rollouts: Input should be a valid integer, got \{'x': 4"),
        ('cohort.path=""', r"cohort\.path: String should have at least 1 character"),
    ],
)
def test_a_value_that_is_no_number_of_its_kind_is_refused(override, expected):
    with pytest.raises(ConfigurationError, match=expected):
        load_config([CONFIGS / "smollm2_demo.yaml"], [override])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sft.learning_rate=1e-4", 1e-4),
        ("sft.learning_rate=1.e-4", 1e-4),
        ("sft.seed=010", 10),
        ("sft.seed=1_000", 1000),
        ("sft.enabled=no", False),
        ("sft.enabled=on", True),
        ("run.name=2024-01-02", "2024-01-02"),
        ("run.name=off", "off"),
        ("evaluate.num_patients=null", None),
        ("evaluate.num_patients=", None),
    ],
)
def test_values_are_read_as_they_look(override, value):
    config = load_config([CONFIGS / "smollm2_demo.yaml"], [override])

    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(
    "name",
    ["../../x", "a/b", "a\\\\b", "/tmp/x", ".", "..", '"a\\0b"', '"a\\n"', '" a"', "x" * 101],
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"run\.name must be the name of a folder"):
        load_config([CONFIGS / "smollm2_demo.yaml"], [f"run.name={name}"])


@pytest.mark.parametrize("file", ["..yaml", "...yaml"])
def test_a_file_whose_name_is_no_folder_name_needs_a_name_for_the_run(tmp_path, file):
    (tmp_path / file).write_text("cohort:\n  seed: 1\n")

    with pytest.raises(ConfigurationError, match=r"run\.name=NAME"):
        load_config([tmp_path / file])
    assert load_config([tmp_path / file], ["run.name=one"]).run.name == "one"


@pytest.mark.parametrize("none", ["run.name=null", "run.name="])
def test_without_a_name_the_run_is_named_after_its_file(none):
    assert load_config([CONFIGS / "smollm2_demo.yaml"], [none]).run.name == "smollm2_demo"


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text("sft: " + "[" * 3000)

    with pytest.raises(ConfigurationError, match="not valid YAML"):
        load_config([file])


def test_the_configuration_page_is_current():
    from training.config.reference import TARGET, render

    assert TARGET.read_text() == render(), "run `python -m training.config.reference`"


def test_a_short_answer_is_not_searched_by_a_tree():
    expected = r"does not fit: \w.*search\.method=samples"  # of no one setting
    with pytest.raises(ConfigurationError, match=expected):
        load_config([CONFIGS / "smollm2_demo.yaml"], ["prompt.kind=short_answer"])

    found = load_config(
        [CONFIGS / "smollm2_demo.yaml"], ["prompt.kind=short_answer", "search.method=samples"]
    )
    assert found.search.method == "samples"


def test_another_test_cohort_has_the_task_of_the_run():
    other = ["evaluate.other_cohort.source=synthetic", "evaluate.other_cohort.task=readmission"]
    with pytest.raises(ConfigurationError, match=r"other_cohort\.task must be cohort\.task"):
        load_config([CONFIGS / "smollm2_demo.yaml"], other)

    own = [*other, "cohort.task=readmission"]
    with pytest.raises(ConfigurationError, match=r"other_cohort\.horizon_days must be cohort\."):
        load_config([CONFIGS / "smollm2_demo.yaml"], [*own, "cohort.horizon_days=90"])

    found = load_config([CONFIGS / "smollm2_demo.yaml"], own)
    assert found.evaluate.other_cohort is not None
    assert found.evaluate.other_cohort.source == "synthetic"


def test_a_context_too_short_for_the_reasoning_of_think_then_answer_is_refused():
    long = ["prompt.think_budget_tokens=1100", "prompt.max_prompt_tokens=900"]
    demo = [CONFIGS / "smollm2_demo.yaml"]

    assert load_config(demo, long).model.max_model_len == 2048
    with pytest.raises(ConfigurationError, match=r"model\.max_model_len is 2048"):
        load_config(demo, [*long, "evaluate.methods=[think_then_answer_json]"])


def test_orders_of_features_are_a_list_or_a_single_value():
    several = load_config(
        [], ["evaluate.feature_order_shuffle=[0,0.25]", "evaluate.feature_order_seed=[1,2]"]
    ).evaluate
    single = load_config(
        [], ["evaluate.feature_order_shuffle=1", "evaluate.feature_order_seed=5"]
    ).evaluate

    assert [(each.share, each.seed) for each in several.feature_orders] == [(0.25, 1), (0.25, 2)]
    assert [(each.share, each.seed) for each in single.feature_orders] == [(1.0, 5)]
    assert load_config([], []).evaluate.feature_orders == ()
