"""The loss of supervised fine-tuning."""

import torch
from jaxtyping import Float
from torch import Tensor

from training.config.sft import FineTuneSection
from training.learner.packing import PackedRow


def sft_loss(
    logprobs: Float[Tensor, " targets"],
    row: PackedRow,
    section: FineTuneSection,
    num_trajectories: int,
) -> Float[Tensor, ""]:
    """A row's share of a step's loss, Eq. 8.

    Args:
        logprobs: of the row's trained tokens.
        row: which trajectories they belong to.
        section: `token_mean` is the mean over the step's trajectories of their token means; `sum`
            is Eq. 8 as it stands, the sum over trajectories and tokens.
        num_trajectories: of the whole step.
    """
    if not row.sequences:
        return logprobs.sum() * 0
    if section.reduction == "sum":
        return -logprobs.sum()
    lengths = torch.tensor(row.lengths, device=logprobs.device).clamp(min=1)
    return -(row.padded(logprobs).sum(1) / lengths).sum() / num_trajectories
