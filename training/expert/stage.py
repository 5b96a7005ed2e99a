"""The expert stage: from the run folder to salience."""

import json

from training.run.progress import OnProgress
from training.run.session import Session


def train_the_expert(session: Session, on_progress: OnProgress) -> None:
    """Trains the ConCare ensembles and stores their salience."""
    from training.expert.train import train_expert

    session.connect()
    generator = session.config.generator
    train_expert(
        session.cohort,
        session.config.expert,
        session.path("expert"),
        session.train_storage,
        on_progress,
        # The engine was asked for first and may not have booked its share yet.
        reserved_cpus=generator.num_replicas * generator.cpus_per_replica,
    )
    metrics = json.loads((session.path("expert") / "metrics.json").read_text())
    kappa = metrics.get("kappa")
    agreement = "" if kappa is None else f", salience kappa {kappa:.2f}"
    auroc = metrics["test"]["auroc"]  # null if the test patients lack a class
    reached = "not defined" if auroc is None else f"{auroc:.3f}"
    session.display.say(f"expert: test AUROC {reached}{agreement}")
