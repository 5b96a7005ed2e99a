"""The stages of a run: what each reads, what keys it, and in which order they go.

A stage is skipped when it finished under the same key, resumed when it was interrupted, and
refused when it was begun under another key (unless it is to be redone).
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ehr.cohorts.loaders import release_sources, source_hash
from ehr.config import CohortSection
from ehr.errors import ConfigurationError, RunFolderError
from ehr.whole_files import file_hash
from training.config.loading import validated
from training.config.run import RunConfig
from training.run.folder import RunFolder
from training.run.progress import Display
from training.run.stages import Stage, StageWork
from training.run.step_watch import watch_steps

OPERATIONAL = frozenset(
    {
        "cohort.path",  # its content counts, not its place
        "model.cache_dir",
        "expert.num_workers",
        "expert.cpus_per_worker",
        "expert.gpus_per_worker",
        "search.num_actors",
        "search.cpus_per_actor",
        "search.trees_in_flight",
        "search.max_invalid_scores",  # limits that stop a stage change nothing of what it wrote
        "grpo.canary_tolerance",
        "grpo.served_share_warning",
        "grpo.served_share_tolerance",
        "sft.checkpoint_steps",
        "direct_sft.checkpoint_steps",
        "learner.num_workers",
        "learner.cpus_per_worker",
        "learner.gpus_per_worker",
        "learner.threads",
        "learner.max_failures",
        "learner.start_timeout_s",
    }
)
"""Settings that say where and how fast work is done, never what comes out of it."""


UNITS_FOLDER = "arms"
"""Below an experiment's run folder: its units."""

_OF_UNITS = frozenset(
    {"learn", "prompt", "reward", "model", "direct_sft", "grpo", "evaluate", "learner"}
)
"""Sections that an experiment's units read, whose results are made of config.json as well."""


class Pipeline:
    """Runs stages in order, each at most once per key."""

    def __init__(
        self,
        stages: Iterable[Stage],
        folder: RunFolder,
        config: RunConfig,
        display: Display,
        describe_model: Callable[[], object],
        only: Collection[str] | None = None,
    ) -> None:
        """A pipeline in a folder; of the stages in `only`, or of all.

        What `describe_model` returns (JSON) is part of the key of every stage that reads `model`.
        Stages that are not in `only` are there already: they key those that read them.
        """
        self.stages = stages_by_name = {stage.name: stage for stage in stages}
        self.folder = folder
        self.config = config
        self.display = display
        self._describe_model = describe_model
        self._only = frozenset(stages_by_name) if only is None else frozenset(only)

    def wanted(self, target: str | None) -> list[Stage]:
        """The stages that lead to `target` in order; all of them for None."""
        enabled = [
            stage
            for stage in self.stages.values()
            if stage.name in self._only and stage.when(self.config)
        ]
        if target is None:
            return enabled
        needed = {target}
        for stage in reversed(list(self.stages.values())):
            if stage.name in needed:
                needed |= set(stage.needs)
        return [stage for stage in enabled if stage.name in needed]

    def key(self, stage: Stage) -> dict[str, Any]:
        """What the stage's result depends on: settings read, and outputs of the stages before."""
        tree = self.config.model_dump(mode="json")
        settings: dict[str, Any] = {}
        for name in stage.sections:
            section, _, field = name.partition(".")
            for key, value in tree[section].items():
                full = f"{section}.{key}"
                if full not in OPERATIONAL and field in ("", key):
                    settings[full] = value
        if "cohort" in stage.sections:
            settings |= _data("cohort data", self.config.cohort)
        other = self.config.evaluate.other_cohort
        if "evaluate" in stage.sections and other is not None:
            described = other.model_dump(mode="json", exclude={"path"})
            settings["evaluate.other_cohort"] = described
            settings |= _data("other cohort data", other)
        if "model" in stage.sections:
            settings["model content"] = self._describe_model()
        inputs = {
            name: (self.folder.stage(name).read() or {}).get("output")
            for name in stage.needs
            if self.stages[name].when(self.config)
        }
        return {"settings": settings, "inputs": inputs}

    def check(self, target: str | None, redo: str | None = None) -> list[Stage]:
        """The stages still to run, before any long work begins.

        Nothing is removed: what is to be redone counts as not done here, and `remove` removes it.

        Raises:
            RunFolderError: if a stage was begun under another key; lists what differs.
            DataError: if the cohort's files cannot be read.
        """
        wanted = self.wanted(target)
        if redo is not None and redo not in (names := [stage.name for stage in wanted]):
            raise RunFolderError(
                f"--redo takes a stage of this command ({', '.join(names)}), got {redo!r}; "
                "`eag-rl run` has them all"
            )
        stale = self.downstream(redo) if redo is not None else set()
        todo: list[Stage] = []
        for stage in wanted:
            upstream_changes = any(before.name in stage.needs for before in todo)
            if stage.name in stale or upstream_changes or not self._is_done(stage):
                self.key(stage)  # reads what it depends on: errors come before any work
                todo.append(stage)
        if not any("cohort" in stage.sections for stage in todo):
            release_sources()
        return todo

    def remove(self, redo: str) -> None:
        """Removes a stage that is made again and all that follows from it, which goes first."""
        stale = self.downstream(redo)
        for name in reversed(self.stages):
            if name in stale:
                self.folder.stage(name).remove()

    def described(self, todo: Collection[Stage]) -> RunConfig:
        """What the folder's stages are made with, once `todo` has run: config.json.

        A stage that stays keeps the settings of its own record, whatever this command says of them;
        of two stages with different ones, the later one counts. What no stage that stays has read
        is as this command says it.

        Args:
            todo: the stages that the command runs; those to be redone are removed already.

        Raises:
            RunFolderError: if both together do not fit.
        """
        command = self.config.model_dump(mode="json")
        earlier = self.folder.recorded_config()
        tree = copy.deepcopy(command)
        for stage in self.stages.values():
            record = self.folder.stage(stage.name)
            if stage in todo:
                source = command
            elif record.read() is not None:
                source = copy.deepcopy(earlier)
                record.put_settings(source)
            else:
                continue
            for name in stage.sections:
                section, _, field = name.partition(".")
                made = source.get(section, {})
                for key in tree[section].keys() & made.keys():
                    if field in ("", key):
                        tree[section][key] = made[key]
        # What an experiment is made of, and what its units were made with, only `learn` changes.
        is_experiment = (self.folder.path / UNITS_FOLDER).is_dir()
        for section in tree.keys() & earlier.keys() & (_OF_UNITS if is_experiment else {"learn"}):
            tree[section] = earlier[section]
        try:
            return validated(tree)
        except ConfigurationError as error:
            raise RunFolderError(
                f"{self.folder.path} has stages that were made under another configuration, which "
                f"does not fit this one: {error}; choose another folder with --run-dir"
            ) from None

    def run(
        self,
        todo: list[Stage],
        work: Mapping[str, StageWork],
        session: Any,
        after: Callable[[], None],
    ) -> None:
        """Runs the stages, marking each as running and then as done.

        Args:
            todo: the stages; those to be redone are removed already.
            work: what each does, by its name.
            session: given to it.
            after: called after each.
        """
        for stage in todo:
            if self._is_done(stage):  # its inputs came out as they were
                continue
            record = self.folder.stage(stage.name)
            earlier = record.read()
            record.begin(self.key(stage))
            steps = watch_steps(self.folder, stage.name) if stage.has_steps else None
            with record.timed():
                with self.display.stage(stage.name, steps) as on_progress:
                    if earlier is not None:
                        self._tell_resumed(stage.name, earlier)
                    work[stage.name](session, on_progress)
                outputs = [self.folder.path / stage.name / output for output in stage.outputs]
                output = "+".join(file_hash(path)[:16] for path in outputs)
            record.finish(0.0, output)
            after()

    def _tell_resumed(self, name: str, record: Mapping[str, Any]) -> None:
        told = f"{record['attempts']} so far, {record['seconds']:.0f} s"
        self.display.say(f"{name}: resuming an interrupted attempt ({told})")

    def _is_done(self, stage: Stage) -> bool:
        record = self.folder.stage(stage.name)
        differences = record.differences(self.key(stage))
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise RunFolderError(
                f"{stage.name} in {self.folder.path} was made under another configuration "
                f"({'; '.join(differences[:5])}{more}); give --redo {stage.name} to replace it and "
                f"all after it, or another folder with --run-dir{_frame_hint(differences)}"
            )
        lost = [name for name in stage.outputs if not (record.folder / name).exists()]
        if record.done and lost:
            self.display.say(f"{stage.name}: {', '.join(lost)} is gone; it runs again")
        elif record.done:
            self.display.say(f"{stage.name}: already done, same inputs; skipped")
        return record.done and not lost

    def downstream(self, name: str) -> set[str]:
        """A stage and all that read what it writes, directly or not."""
        stale = {name}
        for stage in self.stages.values():
            if stale & set(stage.needs):
                stale.add(stage.name)
        return stale


def _frame_hint(differences: list[str]) -> str:
    """What a changed chat frame usually means; empty where it has not changed."""
    frames = [each for each in differences if each.startswith("settings.model content.chat frame")]
    if not frames or "'absent' -> " in frames[0]:
        return ""
    return (
        ". The same model has another chat frame: a template that writes the day's date does that; "
        "before the next long run put a fixed date into the model folder's chat_template.jinja"
    )


def _data(name: str, section: CohortSection) -> dict[str, str]:
    """The content that a cohort is read from, under its name in a key."""
    content = source_hash(section)
    return {} if content is None else {name: content[:16]}
