"""What the stages of one run share: configuration, folder, cohort, model, Ray and the services.

Everything is made when it is first needed, so that a stage that needs no cluster starts none, and
is closed in one place.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd
import ray

from actors.case_prompts import PromptKind, case_prompt
from actors.rollouts import RolloutPrompt
from ehr.cohort import Cohort, load_cohort
from ehr.errors import DataError
from ehr.names import FeatureMatcher
from ehr.pieces import TextTokenizer
from ehr.prompts import PromptContext
from ehr.salience import salient_sets
from services.adapters import adapter_checksum
from services.clients import ExpertClient, GeneratorClient
from services.cluster import Cluster, Requirement, connect, preflight
from services.expert import start_expert
from services.generator import deploy_generator, publish_policy, wait_for_generator
from services.models import LocalModel, load_tokenizer, resolve_model
from services.types import BASE_POLICY, PolicyVersion
from training.config import RunConfig
from training.progress import Reporter
from training.run_folder import RunFolder

ResultT = TypeVar("ResultT")


class Session:
    """One run's shared state; a context manager that leaves no process behind."""

    def __init__(self, config: RunConfig, folder: RunFolder, reporter: Reporter) -> None:
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self._cluster: Cluster | None = None
        self._generator_asked = False
        self._generator_ready = False
        self._expert_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster is not None:
            self._cluster.close(self.folder.run_id)
            self._cluster = None

    @property
    def run_id(self) -> str:
        """Names everything of this run on the cluster."""
        return self.folder.run_id

    def path(self, stage: str) -> Path:
        """A stage's folder."""
        return self.folder.path / stage

    @property
    def train_storage(self) -> Path:
        """Where Ray Train keeps its own records."""
        return self.folder.path / ".ray_train"

    @cached_property
    def model(self) -> LocalModel:
        """The language model as a local folder."""
        return resolve_model(self.config.model)

    @cached_property
    def cohort(self) -> Cohort:
        """The run's cohort, from its folder."""
        return load_cohort(self.path("cohort"))

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self.model.path)

    @cached_property
    def matcher(self) -> FeatureMatcher:
        """Reads feature names as language models write them."""
        return FeatureMatcher(self.cohort.features)

    def make_generator(self) -> Callable[[], GeneratorClient]:
        """Builds a generator client inside a worker."""
        return partial(GeneratorClient, self.run_id, self.config.generator.request_timeout_s)

    def make_tokenizer(self) -> Callable[[], TextTokenizer]:
        """Builds the tokenizer inside a worker."""
        return partial(load_tokenizer, self.model.path)

    def make_opinion(self) -> Callable[[], Callable[[str], Coroutine[Any, Any, frozenset[str]]]]:
        """Builds, inside a worker, the call that asks the expert service for C_exp."""
        return partial(
            _opinion_of_cases,
            self.run_id,
            self.config.generator.request_timeout_s,
            self.cohort_reference,
        )

    @cached_property
    def cohort_reference(self) -> "ray.ObjectRef":
        """The cohort in the object store, put once."""
        return ray.put(self.cohort)

    def salient(self, patient_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """C_exp of cohort patients, from the stored out-of-fold salience."""
        table = pd.read_parquet(self.path("expert") / "salience.parquet")
        expert = self.config.expert
        sets = salient_sets(table, list(patient_ids), expert.num_salient_features, expert.candidates)
        return {patient: frozenset(names) for patient, names in zip(patient_ids, sets, strict=True)}

    def prompts(self, patient_ids: Collection[str], kind: PromptKind) -> tuple[RolloutPrompt, ...]:
        """The prompts of patients, as every stage shows them."""
        context = PromptContext.of(self.cohort, self.config.prompt)
        return tuple(
            RolloutPrompt(
                patient_id=patient,
                token_ids=case_prompt(
                    self.cohort.cases[patient], kind, context, self.tokenizer, self.model.chat
                ).token_ids,
            )
            for patient in patient_ids
        )

    def connect(self) -> None:
        """Starts Ray or joins a cluster, and checks that the configuration fits it."""
        if self._cluster is None:
            self._cluster = connect(self.config.cluster, self.config.run.verbose)
            if self._cluster.dashboard_url:
                self.reporter.say(f"Ray dashboard: {self._cluster.dashboard_url}")
            preflight(requirements(self.config))

    def deploy_generator(self) -> None:
        """Asks for the generator without waiting: the engine loads while other stages work."""
        self.connect()
        if not self._generator_asked:
            deploy_generator(
                self.run_id,
                self.folder.path,
                self.model,
                self.config.model,
                self.config.generator,
            )
            self._generator_asked = True

    def start_generator(self) -> None:
        """Returns when the generator answers."""
        self.deploy_generator()
        if not self._generator_ready:
            wait_for_generator(self.run_id, self.config.generator)
            self._generator_ready = True

    def start_expert(self) -> None:
        """Returns when the expert service answers."""
        self.connect()
        if not self._expert_ready:
            start_expert(self.run_id, self.folder.path, self.config.expert)
            self._expert_ready = True

    def serve_base(self) -> PolicyVersion:
        """Makes the generator serve the model without an adapter."""
        return self._publish(BASE_POLICY, None, 0.0)

    def serve_adapter(self, version: PolicyVersion, adapter: Path) -> PolicyVersion:
        """Makes the generator serve an adapter in peft's format."""
        learner = self.config.learner
        return self._publish(version, adapter, learner.lora_alpha / learner.lora_rank)

    def _publish(self, version: PolicyVersion, adapter: Path | None, scaling: float) -> PolicyVersion:
        self.start_generator()
        file = None if adapter is None else adapter / "adapter_model.safetensors"
        if file is not None and not file.exists():
            raise DataError(f"expected an adapter at {file}; redo the stage that writes it")
        checksum = "" if file is None else adapter_checksum(file.read_bytes())
        asyncio.run(
            publish_policy(
                self.run_id,
                version,
                file,
                checksum,
                scaling,
                timeout_s=self.config.generator.request_timeout_s,
            )
        )
        return version


def requirements(config: RunConfig) -> list[Requirement]:
    """What the parts of a run ask of the cluster while they are up together."""
    generator, search, learner, expert = (
        config.generator,
        config.search,
        config.learner,
        config.expert,
    )
    wanted = [
        Requirement(
            "generator replica",
            generator.num_replicas,
            generator.cpus_per_replica,
            generator.gpus_per_replica,
        ),
        Requirement("expert training worker", expert.num_workers, expert.cpus_per_worker, expert.gpus_per_worker),
        Requirement("search actor", search.num_actors, search.cpus_per_actor, 0),
    ]
    if config.sft.enabled or config.grpo.enabled:
        wanted.append(
            Requirement(
                "learner rank", learner.num_workers, learner.cpus_per_worker, learner.gpus_per_worker
            )
        )
    return wanted


def _opinion_of_cases(
    run_id: str, timeout_s: float, cohort: "ray.ObjectRef"
) -> Callable[[str], Coroutine[Any, Any, frozenset[str]]]:
    client = ExpertClient(run_id, timeout_s)
    cases = ray.get(cohort).cases

    async def opinion(patient_id: str) -> frozenset[str]:
        return frozenset((await client.opinion(cases[patient_id])).salient)

    return opinion
