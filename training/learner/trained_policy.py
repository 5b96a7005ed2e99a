"""Serving a policy that was trained, and seeing that it is what the generators serve."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from ehr.whole_files import write_json
from services.adapters import adapter_checksum
from services.types import PolicyVersion
from training.learner.canary import CanaryRecord
from training.learner.canary_check import check_canary
from training.learner.checkpoints import ADAPTER_FILE
from training.run.session import Session

SERVED_FILE = "served.json"
"""In the folder of the stage that asks: how each policy was served, by its name."""

_BFLOAT16_CHANGE = 0.25
"""Least change in nats whose share is read where nobody measured the noise before training: four
times what a learner and an engine in bfloat16 disagree by on the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPolicy:
    """An adapter on disk and under which version it is published."""

    version: PolicyVersion
    adapter: Path
    """Folder in peft's format."""
    stage: Path
    """Folder of the stage that trained it, which has its canary."""


def serve_trained(
    session: Session, policy: TrainedPolicy, name: str, folder: Path
) -> PolicyVersion:
    """Publishes a policy and compares every replica's canary with that of its learner.

    Args:
        session: the run.
        policy: what to serve.
        name: of the policy, in messages and in `served.json`.
        folder: of the stage that asks it; `served.json` is written there.

    Returns:
        Its version, which requests can ask for.

    Raises:
        TrainingError: if the generators serve something else.
    """
    session.serve_adapter(policy.version, policy.adapter)
    record = CanaryRecord.read(policy.stage)
    checksum = adapter_checksum((policy.adapter / ADAPTER_FILE).read_bytes())
    learner = None if record is None else record.learner.get(checksum)
    if record is None or learner is None:
        session.display.say(
            f"the learner's canary of {name} was not kept (an earlier version trained it?): what "
            "is served is not compared with what was trained"
        )
        return policy.version
    canary = record.canary
    scored = asyncio.run(
        session.make_generator()().score(
            canary.prompt_token_ids, canary.response_token_ids, policy.version
        )
    )
    is_exact = session.precision.parameter_type == "float32" or record.served_before
    found = check_canary(
        learner,
        [each.logprobs for each in scored],
        record,
        session.config.grpo,
        f"the policy of {name}",
        least_change=0.0 if is_exact else _BFLOAT16_CHANGE,
    )
    path = folder / SERVED_FILE
    earlier = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**earlier, name: found})
    return policy.version
