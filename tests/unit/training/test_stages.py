import io
import json
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from ehr.cohorts.tjh import FILE_NAME
from ehr.errors import RunFolderError
from ehr.whole_files import file_hash, write_json
from tests.physionet2012_files import stays_of, write_archive, write_folder
from training.config.run import RunConfig
from training.main_job import WORK
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display
from training.run.stages import STAGES, Stage


class Work:
    """Two stages that count their calls; `second` reads what `first` wrote."""

    def __init__(self, path):
        self.path = path
        self.calls = []
        self.fail = set()
        self.model = "weights 1"

    def stages(self):
        return [
            Stage(
                name="first",
                sections=("sft",),
                needs=(),
                outputs=("out.txt",),
            ),
            Stage(
                name="second",
                sections=("search.num_rollouts", "model"),
                needs=("first",),
                outputs=("out.txt",),
            ),
        ]

    def functions(self):
        return {name: self._do(name) for name in ("first", "second")}

    def _do(self, name):
        def work(session, on_progress):
            self.calls.append(name)
            on_progress(1, 2, "half")
            if name in self.fail:
                raise RuntimeError("stopped")
            folder = self.path / name
            folder.mkdir(exist_ok=True)
            (folder / "out.txt").write_text(name)

        return work


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)


def pipeline(work, **sections):
    console = Console(file=io.StringIO(), force_terminal=False)
    config = RunConfig.model_validate(sections)
    return Pipeline(
        work.stages(), RunFolder(work.path), config, Display(console), lambda: work.model
    )


def run(work, pipe, target=None, redo=None, after=lambda: None):
    todo = pipe.check(target, redo)
    if redo is not None:
        pipe.remove(redo)
    pipe.run(todo, work.functions(), session=None, after=after)


def test_a_second_run_with_the_same_inputs_does_nothing(work):
    run(work, pipeline(work))
    run(work, pipeline(work))

    assert work.calls == ["first", "second"]


def test_whoever_waits_is_told_after_every_stage_that_ran(work):
    states = []

    def note():
        states.append(
            [work.path.joinpath(name, "out.txt").exists() for name in ("first", "second")]
        )

    run(work, pipeline(work), target="first", after=note)
    run(work, pipeline(work), after=note)

    assert states == [[True, False], [True, True]]


def test_an_interrupted_stage_is_run_again_and_the_finished_one_is_not(work):
    work.fail = {"second"}
    with pytest.raises(RuntimeError):
        run(work, pipeline(work))
    work.fail = set()

    run(work, pipeline(work))

    assert work.calls == ["first", "second", "second"]
    record = json.loads((work.path / "second" / "stage.json").read_text())
    assert (record["state"], record["attempts"]) == ("done", 2)


def test_the_time_of_an_attempt_that_was_killed_is_counted(work):
    record, key = RunFolder(work.path).stage("first"), pipeline(work).key(work.stages()[0])
    child = os.fork()
    if child == 0:  # a process of its own, which no error handler of ours outlives
        record.begin(key)
        with record.timed(every_s=0.01):
            deadline = time.monotonic() + 30
            while (record.read() or {})["seconds"] < 0.05 and time.monotonic() < deadline:
                pass
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = record.read() or {}

    run(work, pipeline(work), target="first")

    found = record.read() or {}
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert killed["state"] == "running"
    assert killed["seconds"] >= 0.05
    assert (found["state"], found["attempts"]) == ("done", 2)
    assert found["seconds"] >= killed["seconds"]


def test_the_seconds_of_all_attempts_add_up_and_are_said(work, monkeypatch):
    clock = SimpleNamespace(monotonic=iter([100.0, 107.0, 200.0, 203.5]).__next__)
    # Of this module alone: threads of other tests may look at the time.
    monkeypatch.setattr("training.run.folder.time", clock)
    record = RunFolder(work.path).stage("first")

    for _ in range(2):
        record.begin({})
        with record.timed():
            pass

    assert (record.read() or {})["seconds"] == 10.5
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=False, width=200)
    told = Pipeline(
        work.stages(), RunFolder(work.path), RunConfig(), Display(console), lambda: work.model
    )
    told._tell_resumed("first", record.read() or {})
    assert "first: resuming an interrupted attempt (2 so far, 10 s)" in terminal.getvalue()


def test_another_configuration_is_refused_and_says_what_differs(work):
    run(work, pipeline(work))

    with pytest.raises(RunFolderError, match=r"sft\.epochs'?: 2 -> 3.*--redo first"):
        run(work, pipeline(work, sft={"epochs": 3}))

    assert work.calls == ["first", "second"]


def test_a_setting_that_a_stage_does_not_read_changes_nothing(work):
    run(work, pipeline(work))

    run(work, pipeline(work, grpo={"steps": 7}, search={"num_actors": 2}))

    assert work.calls == ["first", "second"]


def test_redo_replaces_the_stage_and_all_after_it(work):
    run(work, pipeline(work))

    run(work, pipeline(work, sft={"epochs": 3}), redo="first")

    assert work.calls == ["first", "second", "first", "second"]


def test_a_redo_that_is_refused_has_removed_nothing(work):
    run(work, pipeline(work))

    with pytest.raises(RunFolderError, match=r"sft\.epochs"):
        run(work, pipeline(work, sft={"epochs": 3}), redo="second")

    assert (work.path / "second" / "out.txt").exists()


def test_a_redo_beyond_the_command_is_refused(work):
    run(work, pipeline(work))

    with pytest.raises(RunFolderError, match=r"--redo takes a stage of this command \(first\)"):
        run(work, pipeline(work), target="first", redo="second")

    assert (work.path / "second" / "out.txt").exists()


def test_a_stage_whose_output_is_gone_runs_again(work):
    run(work, pipeline(work))
    (work.path / "second" / "out.txt").unlink()

    run(work, pipeline(work))

    assert work.calls == ["first", "second", "second"]


def test_another_models_weights_under_the_same_name_are_refused(work):
    run(work, pipeline(work))
    work.model = "weights 2"

    with pytest.raises(RunFolderError, match=r"model content.*weights 1.*weights 2"):
        run(work, pipeline(work))


def test_the_same_model_with_another_days_chat_frame_is_refused_and_named(work):
    work.model = {"files": "weights 1", "chat frame": "Today: 01 Jan 2025\n{message}"}
    run(work, pipeline(work))
    assert pipeline(work).check(None) == []
    work.model = {**work.model, "chat frame": "Today: 02 Jan 2025\n{message}"}

    with pytest.raises(RunFolderError, match=r"chat frame: .*01 Jan.*02 Jan.*a fixed date"):
        run(work, pipeline(work))


def test_a_run_from_before_the_frame_was_in_the_key_is_refused_without_talk_of_dates(work):
    run(work, pipeline(work))
    work.model = {"files": "weights 1", "chat frame": "{message}"}

    with pytest.raises(RunFolderError, match=r"model content.*--run-dir$"):
        run(work, pipeline(work))


def test_a_stage_whose_deleted_input_comes_out_the_same_is_kept(work):
    run(work, pipeline(work))
    RunFolder(work.path).stage("first").remove()

    run(work, pipeline(work))

    assert work.calls == ["first", "second", "first"]


def test_a_target_runs_what_it_needs_and_nothing_after(work):
    run(work, pipeline(work), target="first")

    assert work.calls == ["first"]


def test_a_folder_in_use_says_by_which_process(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()

    second = RunFolder(tmp_path / "run").lock()
    with folder.lock(), pytest.raises(RunFolderError, match="in use by process"), second:
        pass


@pytest.mark.parametrize("name", ["a b", "{x}", "p\u00e4tient", "a?b#c", "x" * 200, "run\udcff"])
def test_whatever_the_folder_is_called_services_take_the_runs_id(tmp_path, name):
    run_id = RunFolder(tmp_path / name).run_id

    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}-[0-9a-f]{6}", run_id)
    assert run_id != RunFolder(tmp_path / f"{name[:-1]}!").run_id


def test_a_run_folder_is_readable_by_its_owner_only(tmp_path):
    folder = RunFolder(tmp_path / "run")

    folder.create()

    assert (folder.path.stat().st_mode & 0o777) == 0o700


def test_an_empty_folder_that_was_there_becomes_its_owners_too(tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)

    RunFolder(tmp_path / "run").create()

    assert ((tmp_path / "run").stat().st_mode & 0o777) == 0o700


def test_a_folder_of_another_layout_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"schema_version": 99}')

    with pytest.raises(RunFolderError, match="layout version 99"):
        RunFolder(tmp_path).create()


@pytest.mark.parametrize(
    "text",
    [
        '{"state": "do',
        "[]",
        "null",
        "{}",
        '{"state": "done"}',
        '{"state": "done", "key": 5}',
        '{"state": 1, "key": {}}',
        '{"state": "done", "key": {"settings": []}}',
        '{"state": "done", "key": {}, "seconds": "long"}',
        '{"state": "done", "key": {}, "attempts": true}',
    ],
)
def test_a_torn_record_is_an_error_with_the_fix(tmp_path, text):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "stage.json").write_text(text)

    with pytest.raises(RunFolderError, match="restore it, or remove"):
        RunFolder(tmp_path).stage("first").read()


@pytest.mark.parametrize(
    "fields", [{}, {"config": 5}, {"config": {"model": []}}, {"config": {}, "model": "SmolLM2"}]
)
def test_a_torn_configuration_is_an_error_with_the_fix(tmp_path, fields):
    write_json(tmp_path / "config.json", {"schema_version": 1, **fields})

    with pytest.raises(RunFolderError, match="restore it, or choose another"):
        RunFolder(tmp_path).recorded_precision()


def test_file_hash_sees_contents_and_names_but_not_the_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    same = file_hash(tmp_path / "a") == file_hash(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")

    assert same
    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")


def test_how_missing_values_are_shown_is_part_of_the_key_of_every_stage_that_shows_them(tmp_path):
    def keys(missing):
        config = RunConfig.model_validate({"prompt": {"missing": missing}})
        whole = Pipeline(STAGES, RunFolder(tmp_path), config, Display(), lambda: "weights")
        return {stage.name: whole.key(stage)["settings"] for stage in STAGES}

    as_is, locf = keys("as_is"), keys("locf")

    changed = {name for name in as_is if as_is[name] != locf[name]}
    assert changed == {"search", "grpo", "direct_sft", "evaluate"}


def test_another_cohort_keys_the_evaluation_by_content_and_not_by_place(work, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for place, content in (("a", "same"), ("b", "same"), ("c.xlsx", "other")):
        path = tmp_path / place
        (path / FILE_NAME if path.is_dir() else path).write_text(content)
    stage = Stage(name="asking", sections=("evaluate",), needs=(), outputs=())

    def settings(place):
        other = {"source": "tjh", "path": str(tmp_path / place)}
        return pipeline(work, evaluate={"other_cohort": other}).key(stage)["settings"]

    assert settings("a") == settings("b")
    assert settings("a") != settings("c.xlsx")
    assert settings("a")["evaluate.other_cohort"]["source"] == "tjh"


def test_names_archives_and_stray_files_change_no_key(work, tmp_path):
    folder = write_folder(tmp_path / "folder", stays_of())
    archive = write_archive(tmp_path / "archive", stays_of())
    (tmp_path / "first.xlsx").write_text("records")
    (tmp_path / "renamed.xlsx").write_text("records")
    stage = Stage(name="it", sections=("cohort",), needs=(), outputs=())

    def key(source, path):
        return pipeline(work, cohort={"source": source, "path": str(path)}).key(stage)

    before = key("physionet2012", folder)
    (folder / "set-a" / ".DS_Store").write_bytes(b"\0")
    assert key("physionet2012", folder) == key("physionet2012", archive) == before
    assert key("tjh", tmp_path / "first.xlsx") == key("tjh", tmp_path / "renamed.xlsx")
    (tmp_path / "renamed.xlsx").write_text("other records")
    assert key("tjh", tmp_path / "first.xlsx") != key("tjh", tmp_path / "renamed.xlsx")


def test_a_pipeline_of_some_stages_runs_those_and_is_keyed_by_the_others(work):
    run(work, pipeline(work), target="first")
    config = RunConfig()

    def some():
        console = Console(file=io.StringIO(), force_terminal=False)
        return Pipeline(
            work.stages(),
            RunFolder(work.path),
            config,
            Display(console),
            lambda: work.model,
            only=("second",),
        )

    run(work, some())
    assert work.calls == ["first", "second"]
    assert some().check(None) == []

    (work.path / "first" / "out.txt").write_text("another")
    record = RunFolder(work.path).stage("first")
    record.begin((record.read() or {})["key"])
    record.finish(1.0, "another output")

    with pytest.raises(RunFolderError, match="inputs"):
        some().check(None)


def test_orders_of_test_prompts_key_the_evaluation_and_no_training(tmp_path):
    def keys(**evaluate):
        console = Console(file=io.StringIO(), force_terminal=False)
        config = RunConfig.model_validate({"evaluate": evaluate})
        pipe = Pipeline(STAGES, RunFolder(tmp_path), config, Display(console), lambda: "model")
        return {stage.name: pipe.key(stage) for stage in STAGES}

    plain = keys()
    for changed in (
        keys(feature_order_shuffle=[0, 0.25, 0.5, 0.75, 1]),
        keys(feature_order_shuffle=0.25, feature_order_seed=7),
    ):
        assert {name for name, key in changed.items() if key != plain[name]} == {"evaluate"}


def test_every_stage_has_its_work_and_its_line_of_help():
    assert list(WORK) == [stage.name for stage in STAGES]
    assert all(stage.says for stage in STAGES)


def test_a_stage_needs_only_stages_before_it():
    names = [stage.name for stage in STAGES]

    for place, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(names[:place])
