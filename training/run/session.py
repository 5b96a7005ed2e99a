"""What the stages of one run share: configuration, folder, cohort, model, Ray and the services.

Everything is made when it is first needed, so that a stage that needs no cluster starts none, and
is closed in one place.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import pandas as pd
import ray
from ray.actor import ActorProxy

from actors.case_prompts import CasePrompt, PromptKind, case_prompt
from actors.rollout_actor import RolloutActor
from actors.rollouts import RolloutPrompt
from actors.salience import ServedSalience
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    cohort_hash,
    load_cohort,
)
from ehr.errors import DataError
from ehr.language.feature_order import FeatureOrder
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.rewards import Salience
from ehr.salience.table import stored_salience
from services.adapters import adapter_checksum
from services.applications import (
    expert_application,
    generator_application,
    http_application,
    request_deletion,
)
from services.clients import ExpertClient, GeneratorClient
from services.cluster import (
    Cluster,
    connect,
    preflight,
    require_named_cluster,
    serve_address,
    start_serve,
)
from services.config import ModelSection
from services.expert import start_expert, stop_expert
from services.generator import deploy_generator, stop_generator, wait_for_generator
from services.http_app import start_http_app, stop_http_app
from services.models import LocalModel, load_tokenizer, resolve_model
from services.policy_store import PolicyRecord
from services.precision import Precision, choose_precision
from services.types import BASE_POLICY, PolicyVersion
from training.config.run import RunConfig
from training.run.folder import RunFolder
from training.run.interruption import raise_on_signals
from training.run.progress import Display
from training.run.requirements import requirements


@dataclass(slots=True)
class _Running:
    """What a run has started; its units share it."""

    cluster: Cluster | None = None
    generator_asked: bool = False
    generator_ready: bool = False
    expert_ready: bool = False


class Session:
    """One run's shared state; a context manager that leaves no process behind."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        display: Display,
        parent: "Session | None" = None,
    ) -> None:
        """A run of its own, or a unit of `parent`, whose services and cohort it uses."""
        self.config = config
        self.folder = folder
        self.display = display
        self._lineage_suffix = "" if parent is None else f" {folder.run_id}"
        self.run_id = folder.run_id if parent is None else parent.run_id
        """Names everything of this run on the cluster."""
        self._running = _Running() if parent is None else parent._running
        # Never written down: after a restart the caches are cold anyway.
        self._routing_key = secrets.token_bytes(16) if parent is None else parent._routing_key
        if parent is not None:  # which read the same files
            self.model, self.precision = parent.model, parent.precision
            self.cohort, self.tokenizer = parent.cohort, parent.tokenizer
            self.matcher = parent.matcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        cluster, self._running.cluster = self._running.cluster, None
        if cluster is None:
            return
        try:
            if not cluster.started_here:
                # What others run on a shared cluster stays; this run's own goes, by name. All is
                # asked for at once: `ray job stop` kills this process after three seconds.
                request_deletion(
                    http_application(self.run_id),
                    generator_application(self.run_id),
                    expert_application(self.run_id),
                )
                stop_http_app(self.run_id)
                stop_expert(self.run_id)
                stop_generator(self.run_id)
        finally:
            cluster.close()

    def unit(self, config: RunConfig, folder: RunFolder) -> "Session":
        """This run's services for a unit of an experiment, which has a folder of its own.

        It uses the engine that is up; its policies have lineages of their own, so that none of
        another unit is ever taken for one of this unit. Only this session closes anything.
        """
        self.start_generator()
        return Session(config, folder, self.display, parent=self)

    def lineage(self, stage: str) -> str:
        """Names the policies of a stage among all that the engine serves."""
        return stage + self._lineage_suffix

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
    def precision(self) -> Precision:
        """The parameter type of learner and generator alike, decided here for all of them.

        What a run began with stays: a resumed one must not go on in another type because another
        machine, or this one while it was busy, measured otherwise.
        """
        config = self.config
        recorded = self.folder.recorded_precision()
        if config.model.dtype == "auto" and recorded is not None:
            return recorded
        return chosen_precision(config)

    @property
    def model_section(self) -> ModelSection:
        """The section `model` with the parameter type that was chosen in the place of `auto`."""
        return self.config.model.model_copy(update={"dtype": self.precision.parameter_type})

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
        timeout_s = self.config.generator.request_timeout_s
        return partial(GeneratorClient, self.run_id, timeout_s, self._routing_key)

    def make_tokenizer(self) -> Callable[[], TextTokenizer]:
        """Builds the tokenizer inside a worker."""
        return partial(load_tokenizer, self.model.path)

    def make_ask_salience(self) -> Callable[[], ServedSalience]:
        """Builds, inside a worker, what asks the expert service for C_exp."""
        return partial(
            _ask_salience,
            self.run_id,
            self.config.generator.request_timeout_s,
            cohort_hash(self.cohort),
        )

    @cached_property
    def rollout_actor(self) -> "ActorProxy[Any]":
        """Samples answers on the cluster; ends with this process."""
        return RolloutActor.options(num_cpus=self.config.search.cpus_per_actor).remote(
            self.make_generator(), self.make_tokenizer()
        )

    def stop_rollout_actor(self) -> None:
        """Ends the actor that samples answers, whose share of the cluster others need."""
        actor = self.__dict__.pop("rollout_actor", None)  # where `cached_property` keeps it
        if actor is not None:
            ray.kill(actor)

    def salient(self, patient_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """C_exp of cohort patients, from the stored out-of-fold salience."""
        salience = self.salience(patient_ids)
        return {patient: each.features for patient, each in salience.items()}

    def salience(self, patient_ids: Collection[str]) -> dict[str, Salience]:
        """C_exp of cohort patients with its stability, from the stored out-of-fold salience."""
        table = pd.read_parquet(self.path("expert") / "salience.parquet")
        expert = self.config.expert
        return stored_salience(table, patient_ids, expert.num_salient_features, expert.candidates)

    def case_prompts(self, patient_ids: Collection[str], kind: PromptKind) -> dict[str, CasePrompt]:
        """The prompts of patients and what each shows of its patient."""
        return self.prompts_of(
            {patient: self.cohort.cases[patient] for patient in patient_ids}, kind
        )

    def prompts_of(
        self,
        cases: Mapping[str, PatientCase],
        kind: PromptKind,
        cohort: Cohort | None = None,
        order: FeatureOrder | None = None,
    ) -> dict[str, CasePrompt]:
        """The prompts of records, which may differ from the cohort's or be another cohort's.

        Args:
            cases: the records.
            kind: what is asked.
            cohort: whose records they are; the run's own by default.
            order: of the feature lines, if not the cohort's.
        """
        context = PromptContext.of(cohort or self.cohort, self.config.prompt, order)
        return {
            patient: case_prompt(case, kind, context, self.tokenizer, self.model.chat)
            for patient, case in cases.items()
        }

    def prompts(self, patient_ids: Collection[str], kind: PromptKind) -> tuple[RolloutPrompt, ...]:
        """The prompts of patients, as every stage shows them."""
        return tuple(
            RolloutPrompt(patient_id=patient, token_ids=prompt.token_ids)
            for patient, prompt in self.case_prompts(patient_ids, kind).items()
        )

    def require_cluster(self) -> None:
        """Refuses a cluster that is to be joined and does not answer, before work goes into it."""
        if self._running.cluster is None:
            require_named_cluster(self.config.cluster, self.display.say)

    def connect(self, stages: Collection[str] = (), listen: bool = False) -> Cluster:
        """Starts Ray or joins a cluster; does nothing where that was done.

        Args:
            stages: names of those that will run; what they ask for must fit the cluster.
            listen: Ray Serve must answer HTTP.
        """
        cluster = self._running.cluster
        if cluster is None:
            cluster = connect(self.config.cluster, self.config.run.verbose, self.display.say)
            self._running.cluster = cluster
            if cluster.dashboard_url:
                # A Ray that `ray.init` starts lets nobody in without its token.
                token = " (.venv/bin/ray get-auth-token prints the token it asks for)"
                told = token if cluster.started_here else ""
                self.display.say(f"Ray dashboard: {cluster.dashboard_url}{told}")
            raise_on_signals()
            for stage in stages:
                preflight(requirements(self.config, stage))
            start_serve(self.config.serve, listen=listen, shared=not cluster.started_here)
        return cluster

    def deploy_generator(self) -> None:
        """Asks for the generator without waiting: the engine loads while other stages work."""
        self.connect()
        if not self._running.generator_asked:
            deploy_generator(
                self.run_id,
                self.folder.path,
                self.model,
                self.model_section,
                self.config.generator,
            )
            self._running.generator_asked = True

    def start_generator(self) -> None:
        """Returns when the generator answers."""
        self.deploy_generator()
        if not self._running.generator_ready:
            wait_for_generator(self.run_id, self.config.generator)
            self._running.generator_ready = True

    @cached_property
    def cache_tokens(self) -> int:
        """KV cache of all generator replicas, in tokens."""
        self.start_generator()
        return sum(each.cache_tokens for each in asyncio.run(self.make_generator()().stats()))

    def start_http(self) -> str:
        """Returns the address of the HTTP endpoint, once it answers."""
        cluster = self.connect(listen=True)
        self.start_expert()
        # A shared cluster has one port for all runs: each answers below its own name.
        prefix = "/" if cluster.started_here else f"/{self.run_id}"
        timeout_s = self.config.generator.request_timeout_s
        start_http_app(self.run_id, prefix, timeout_s, self.cohort.features)
        host, port = serve_address()
        return f"http://{host}:{port}{prefix.rstrip('/')}"

    def start_expert(self) -> None:
        """Returns when the expert service answers."""
        self.connect()
        if not self._running.expert_ready:
            start_expert(self.run_id, self.folder.path, self.config.generator.startup_timeout_s)
            self._running.expert_ready = True

    def stop_expert(self) -> None:
        """Ends the expert service, whose share of the cluster others need."""
        stop_expert(self.run_id)
        self._running.expert_ready = False

    def serve_base(self) -> PolicyVersion:
        """Makes the generator serve the model without an adapter."""
        return self._publish(BASE_POLICY, None, 0.0)

    def serve_adapter(self, version: PolicyVersion, adapter: Path) -> PolicyVersion:
        """Makes the generator serve an adapter in peft's format."""
        learner = self.config.learner
        return self._publish(version, adapter, learner.lora_alpha / learner.lora_rank)

    def _publish(
        self, version: PolicyVersion, adapter: Path | None, scaling: float
    ) -> PolicyVersion:
        self.start_generator()
        file = None if adapter is None else adapter / "adapter_model.safetensors"
        if file is not None and not file.exists():
            raise DataError(f"expected an adapter at {file}; redo the stage that writes it")
        checksum = "" if file is None else adapter_checksum(file.read_bytes())
        record = PolicyRecord(
            version=version,
            adapter_path=None if file is None else str(file),
            checksum=checksum,
            scaling=scaling,
        )
        asyncio.run(self.make_generator()().publish(record))
        return version


def chosen_precision(config: RunConfig) -> Precision:
    """The parameter type that a run begins with: of learner and generator, which must agree.

    Where one of the two is on a GPU and the other is not, the CPU decides: a GPU is fast in both.
    """
    learns = config.sft.enabled or config.grpo.enabled or "sft" in config.evaluate.methods
    return choose_precision(
        config.model.dtype,
        on_gpu=config.generator.gpus_per_replica > 0
        and (config.learner.gpus_per_worker > 0 or not learns),
        cache_dir=config.model.cache_dir,
    )


def _ask_salience(run_id: str, timeout_s: float, data_sha256: str) -> ServedSalience:
    return ServedSalience(ExpertClient(run_id, timeout_s), data_sha256)
