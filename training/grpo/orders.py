"""What the controller of Stage-2 and its learner ranks tell each other."""

from dataclasses import dataclass
from enum import StrEnum

from training.grpo.batch import TrainingBatch
from training.learner.canary import Canary

LONG_POLL_S = 20.0
"""How long a rank's question for the next order is held before the answer is `not yet`."""

ANSWER_TIMEOUT_S = 120.0
"""How long the controller may take to answer anything else (a commit to disk)."""


class OrderKind(StrEnum):
    """What a learner rank is asked to do."""

    PROBE = "probe"
    """Score the canary (the first rank reports)."""
    TRAIN = "train"
    """Train a batch, save a checkpoint (the first rank reports)."""
    STOP = "stop"
    """Return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One thing to do, the same for every rank."""

    number: int
    kind: OrderKind
    canary: Canary | None = None
    batch: TrainingBatch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a learner group that (re)starts goes on."""

    attempt: int
    step: int
    """Load the checkpoint of this step; 0 = Stage-1's adapter, or a fresh one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPolicy:
    """An adapter from the learner."""

    adapter: bytes
    adapter_config: str
    scaling: float
