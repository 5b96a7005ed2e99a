"""What the rows of a step's updates add up to, over all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SUMS: tuple[str, ...] = (
    "loss",
    "tokens",
    "clipped_low",
    "clipped_high",
    "adaptive",
    "old_tokens",
    "entropy",
    "row_tokens",
    "measured",
    "k3",
    "abs",
    "constrained",
    "gap",
    "weighted",
    "weight",
    "capped",
    "risks",
    "expected_cls",
    "clipped_risks",
)


class UpdateTotals:
    """Sums over a step's rows on one rank; `metrics` adds them up over ranks.

    Args:
        device: of the learner, for the collectives.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        self._max_abs = 0.0
        self._device = device

    def add_row(self, row_tokens: int, entropy: Tensor) -> None:
        """A row that the learner has read: all its tokens, and the entropies of trained ones."""
        self._add(row_tokens=row_tokens, old_tokens=entropy.numel(), entropy=float(entropy.sum()))

    def add_mismatch(self, log_ratio: Tensor, gap: Tensor) -> None:
        """How learner and generator differ on the trained tokens of a row.

        Args:
            log_ratio: learner over generator, of freely sampled tokens.
            gap: generator minus learner, of tokens sampled under a constraint. Under a pattern that
                is minus the log of the probability the policy gives to what the pattern allows.
        """
        # k3 of http://joschu.net/blog/kl-approx.html: unbiased for KL(generator, learner), >= 0.
        k3 = log_ratio.exp() - 1 - log_ratio
        self._add(
            measured=log_ratio.numel(),
            k3=float(k3.sum()),
            abs=float(log_ratio.abs().sum()),
            constrained=gap.numel(),
            gap=float(gap.sum()),
        )
        if log_ratio.numel():
            self._max_abs = max(self._max_abs, float(log_ratio.abs().max()))

    def add_importance(self, weights: Tensor, num_capped: int) -> None:
        """Importance weights of a row's trained tokens, and how many the cap cut."""
        self._add(weighted=weights.numel(), weight=float(weights.sum()), capped=num_capped)

    def add_loss(
        self, loss: float, tokens: int, clipped_low: int, clipped_high: int, adaptive: int
    ) -> None:
        """What one micro-batch's loss did."""
        self._add(
            loss=loss,
            tokens=tokens,
            clipped_low=clipped_low,
            clipped_high=clipped_high,
            adaptive=adaptive,
        )

    def add_risks(self, expected: Tensor) -> None:
        """Mean R_cls over the numbers that pi_old could have written, of each exact risk."""
        self._add(risks=expected.numel(), expected_cls=float(expected.sum()))

    def add_clipped_risks(self, clipped: Tensor) -> None:
        """Share of each exact risk's digits, by pi_old, that the clip left without gradient."""
        self._add(clipped_risks=float(clipped.sum()))

    def metrics(self) -> dict[str, Any]:
        """Means and shares over all ranks; None where there was nothing to measure.

        `mismatch/*` is about tokens that learner and generator chose from the same alternatives,
        `constraint/gap_mean` about the others;
        `tis/*` is about all trained tokens, and left out while importance sampling is off;
        `reward/cls_expected` and `clip/risk_share` are left out without `credit: exact_risk`.
        """
        # float32: not every accelerator has float64, and the counts are far below its 2^24.
        sums = torch.tensor([self._sums[name] for name in _SUMS], device=self._device)
        largest = torch.tensor(self._max_abs, device=self._device)
        dist.all_reduce(sums)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        total = dict(zip(_SUMS, sums.tolist(), strict=True))

        def mean(name: str, count: str) -> float | None:
            return total[name] / total[count] if total[count] else None

        metrics = {
            "loss": total["loss"],
            "clip/low_share": mean("clipped_low", "tokens") or 0.0,
            "clip/high_share": mean("clipped_high", "tokens") or 0.0,
            "clip/adaptive_share": mean("adaptive", "tokens") or 0.0,
            "entropy/all_mean": mean("entropy", "old_tokens"),
            "mismatch/k3": mean("k3", "measured"),
            "mismatch/mean_abs": mean("abs", "measured"),
            "mismatch/max_abs": float(largest) if total["measured"] else None,
            "mismatch/measured_share": mean("measured", "old_tokens") or 0.0,
            "constraint/gap_mean": mean("gap", "constrained"),
            "tokens/learner": total["row_tokens"],
        }
        if total["weighted"]:
            metrics["tis/mean_weight"] = mean("weight", "weighted")
            metrics["tis/capped_share"] = mean("capped", "weighted")
        if total["risks"]:
            metrics["reward/cls_expected"] = mean("expected_cls", "risks")
            metrics["clip/risk_share"] = mean("clipped_risks", "risks")
        return metrics

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self._sums[name] += value
