"""What Ray must have free before a run's services can start."""

from dataclasses import replace

from services.cluster import (
    Requirement,
)
from services.expert import EXPERT_CPUS
from training.config.run import RunConfig


def requirements(config: RunConfig, stage: str) -> list[Requirement]:
    """What a stage asks of the cluster, with the generator that stays up through all of them."""
    generator, search, learner, expert = (
        config.generator,
        config.search,
        config.learner,
        config.expert,
    )
    engine = Requirement(
        name="generator replica",
        count=generator.num_replicas,
        cpus=generator.cpus_per_replica,
        gpus=generator.gpus_per_replica,
    )
    rank = Requirement(
        name="learner rank",
        count=learner.num_workers,
        cpus=learner.cpus_per_worker,
        gpus=learner.gpus_per_worker,
    )
    actor = Requirement(
        name="search actor", count=search.num_actors, cpus=search.cpus_per_actor, gpus=0
    )
    worker = Requirement(
        name="expert training worker",
        count=expert.num_workers or 1,  # null takes what room there is
        cpus=expert.cpus_per_worker,
        gpus=expert.gpus_per_worker,
    )
    service = Requirement(name="expert service", count=1, cpus=EXPERT_CPUS, gpus=0)
    return {
        "expert": [worker],
        "search": [engine, service, actor],
        "sft": [engine, rank],
        "direct_sft": [engine, rank],
        "grpo": [engine, rank],
        "evaluate": [engine, replace(actor, name="rollout actor", count=1)],
    }.get(stage, [])
