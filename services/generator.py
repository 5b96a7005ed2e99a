"""The generator on Ray Serve: replicas of one engine, all serving the run's current policy."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from ray import serve
from ray.serve.config import RequestRouterConfig

from services.applications import (
    delete_application,
    deploy_application,
    generator_application,
    wait_for_application,
)
from services.config import GeneratorSection, ModelSection
from services.engine import Engine, load_vllm
from services.following import PolicyFollower
from services.models import LocalModel
from services.policy_store import fetch_policy, start_policy_store, stop_policy_store
from services.types import (
    Acknowledgement,
    Completion,
    GenerateRequest,
    GeneratorStats,
    PolicyVersion,
    RiskReading,
    RiskRequest,
    Scored,
)

LoadEngine = Callable[[LocalModel, ModelSection, GeneratorSection], Awaitable[Engine]]
"""How a replica gets its engine; tests pass a fake."""

DEPLOYMENT = "GeneratorReplica"
"""Name of the deployment inside its application."""
_MAX_ONGOING_REQUESTS = 256
"""Beyond this a replica queues: vLLM batches what it has, more only costs memory."""
_SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_GRACE_S = 20.0
"""How long a replica that is being ended may finish its requests."""
_STORE_TIMEOUT_S = 120.0
"""How long one answer of the policy store may take, its restart included."""


class GeneratorReplica:
    """Serve deployment: one engine that follows the run's policy."""

    async def __init__(
        self,
        run_id: str,
        model: LocalModel,
        model_section: ModelSection,
        section: GeneratorSection,
        load_engine: LoadEngine,
    ) -> None:
        self._engine = await load_engine(model, model_section, section)
        # A replica that starts late never answers with the base model by mistake.
        self._follower = await PolicyFollower.follow(
            self._engine,
            partial(fetch_policy, run_id, _STORE_TIMEOUT_S),
            serve.get_replica_context().replica_id.unique_id,
        )

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The completions of a request."""
        return await self._follower.generate(request)

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        """The distribution of the risk that comes next."""
        return await self._follower.read_risk(request)

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> Scored:
        """Log-probabilities of a response: the canary of a sync."""
        return await self._follower.score(prompt_token_ids, response_token_ids, least)

    async def sync(self) -> Acknowledgement:
        """Load the store's current policy."""
        return await self._follower.sync()

    async def stats(self) -> GeneratorStats:
        """Counters of this replica."""
        return self._follower.stats()

    async def check_health(self) -> None:
        """Called by Serve; raising replaces the replica."""
        await self._follower.check()

    def __del__(self) -> None:
        # Serve calls this when the replica ends in order; a constructor that failed has no engine.
        if engine := getattr(self, "_engine", None):
            engine.stop()


def deploy_generator(
    run_id: str,
    run_dir: Path,
    model: LocalModel,
    model_section: ModelSection,
    section: GeneratorSection,
    load_engine: LoadEngine = load_vllm,
) -> None:
    """Start a run's policy store and generator; returns while the engines are still loading."""
    delete_application(generator_application(run_id))
    start_policy_store(run_id, run_dir, _STORE_TIMEOUT_S)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=section.num_replicas,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        request_router_config=_router(section),
        graceful_shutdown_timeout_s=_GRACE_S,
        ray_actor_options={
            "num_cpus": section.cpus_per_replica,
            "num_gpus": section.gpus_per_replica,
        },
    )(GeneratorReplica)
    application = deployment.bind(run_id, model, model_section, section, load_engine)
    deploy_application(application, generator_application(run_id), route_prefix=None)


def _router(section: GeneratorSection) -> RequestRouterConfig:
    if section.num_replicas == 1:
        return RequestRouterConfig()
    # One patient, one replica: its prompt stays in that replica's prefix cache.
    # Its __init__ annotates every keyword as a dict.
    return RequestRouterConfig(request_router_class=_SESSION_ROUTER)  # pyright: ignore[reportArgumentType]


def wait_for_generator(run_id: str, section: GeneratorSection) -> None:
    """Return when every replica of a deployed generator answers.

    Raises:
        ServiceError: if they do not within `generator.startup_timeout_s`.
    """
    wait_for_application(generator_application(run_id), section.startup_timeout_s)


def start_generator(
    run_id: str,
    run_dir: Path,
    model: LocalModel,
    model_section: ModelSection,
    section: GeneratorSection,
    load_engine: LoadEngine = load_vllm,
) -> None:
    """Start a run's policy store and generator; returns when every replica answers."""
    deploy_generator(run_id, run_dir, model, model_section, section, load_engine)
    wait_for_generator(run_id, section)


def stop_generator(run_id: str) -> None:
    """End a run's generator and its policy store."""
    delete_application(generator_application(run_id))
    stop_policy_store(run_id)
