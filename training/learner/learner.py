"""DeepSpeed behind four calls: log-probabilities, backward, step, and a checkpoint.

Only this module imports deepspeed. It sees the fp32 adapter alone (`PolicyModel`), with its own
bf16 mode off: masters, gradients and Adam's moments are fp32 and the weights that are committed are
the masters themselves.
"""

import logging
import math
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from ehr.errors import TrainingError
from training.config.learner import LearnerSection
from training.learner.packing import PackedRow, TokenGroup, pack
from training.learner.policy_model import PolicyModel, RowOutput, load_adapter, save_adapter

logger = logging.getLogger(__name__)

# Otherwise DeepSpeed looks for a compiler and builds a shared-memory collective at the first start:
# 40 s and a C++ toolchain for nothing, gloo and nccl do the work.
deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]

_OPTIMIZER_FILE = "optimizer.safetensors"
_BETAS = (0.9, 0.999)
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's names of its two running means."""


class Learner:
    """One rank: the policy, Adam under ZeRO, and the gradients since the last step.

    Needs an initialised process group. Between two steps every rank must call `backward` equally
    often: ZeRO-2 reduces gradients after each.
    """

    def __init__(self, model: PolicyModel, section: LearnerSection) -> None:
        # Every step states its own learning rate.
        self._adam = torch.optim.AdamW(model.parameters(), lr=0.0, betas=_BETAS, weight_decay=0)
        self.model = model
        # The engine's attributes depend on its configuration; DeepSpeed types none of them.
        self._engine: Any = deepspeed.initialize(
            model=model,
            optimizer=self._adam,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # The number of micro-batches changes from step to step: `step` is the boundary.
                "managed_gradient_accumulation": False,
                "zero_optimization": {"stage": section.zero_stage},
                "gradient_clipping": section.gradient_clip,
                "steps_per_print": 10**9,
            },
        )[0]

    @property
    def num_ranks(self) -> int:
        """Learner ranks of the group."""
        return dist.get_world_size()

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return dist.get_rank()

    def output(self, row: PackedRow) -> RowOutput:
        """What the policy says of a row, to be differentiated by `backward`; no entropies."""
        return RowOutput(*self._engine(row.to(self.model.device)))

    def logprobs(self, row: PackedRow) -> Float[Tensor, " targets"]:
        """Log-probability of a row's trained tokens, to be differentiated by `backward`."""
        return self.output(row).logprobs

    @torch.no_grad()
    def frozen_output(self, row: PackedRow) -> RowOutput:
        """What the present policy says of a row, with entropies, by the same arithmetic."""
        return self.model(row.to(self.model.device), with_entropy=True)

    def frozen_logprobs(
        self, row: PackedRow
    ) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
        """Log-probabilities and entropies under the present policy, by the same arithmetic."""
        output = self.frozen_output(row)
        assert output.entropies is not None, "asked for"
        return output.logprobs, output.entropies

    def scores(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Log-probability of each response token under the present policy, as an engine's `score`.

        Other ranks need not take part.
        """
        group = TokenGroup(
            patient_id="canary",
            prompt=prompt_token_ids,
            responses=(response_token_ids,),
            trained=((True,) * len(response_token_ids),),
        )
        (row,) = pack([group], len(prompt_token_ids) + len(response_token_ids))
        return tuple(self.frozen_logprobs(row)[0].tolist())

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add a micro-batch's gradient.

        Args:
            loss: with denominators of the whole optimizer step, over all ranks and micro-batches.
        """
        # DeepSpeed averages over ranks; the denominators are already global.
        self._engine.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear; the gradient norm before clipping comes back.

        Raises:
            TrainingError: if the gradient is not finite. The weights are then spoilt and the last
                committed policy is the one to go on from.
        """
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise TrainingError(
                f"expected a finite gradient, got norm {norm!r}; lower the learning rate, or look "
                "at the samples named in the log"
            )
        return norm

    def save(self, folder: Path) -> None:
        """Write adapter and optimizer; every rank calls it, the first one writes.

        The files do not depend on the number of ranks. There is no random state: nothing in a
        step is drawn at random.
        """
        moments = {name: self._gathered(name) for name in _MOMENTS}
        if self.rank == 0:
            save_adapter(self.model, folder)
            moments["step"] = self._state()["step"].reshape(1)
            save_file(moments, folder / _OPTIMIZER_FILE)
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; every rank calls it.

        Raises:
            ModelError: if the adapter does not fit the model.
        """
        load_adapter(self.model, folder)
        self._engine.optimizer.refresh_fp32_params()
        saved = load_file(folder / _OPTIMIZER_FILE)
        size = self._masters.numel()
        state = {
            name: F.pad(saved[name], (0, size * self.num_ranks - saved[name].numel()))
            .split(size)[self.rank]
            .to(self.model.device, copy=True)
            for name in _MOMENTS
        }
        self._adam.state[self._masters] = {"step": saved["step"][0].clone(), **state}
        logger.info("loaded learner checkpoint folder=%s", folder)

    @property
    def _masters(self) -> Tensor:
        # DeepSpeed has put its flat fp32 partition in place of the parameters.
        return self._adam.param_groups[0]["params"][0]

    def _state(self) -> dict[str, Tensor]:
        zero = torch.zeros_like(self._masters)
        fresh = {"step": torch.zeros(()), **dict.fromkeys(_MOMENTS, zero)}
        return self._adam.state[self._masters] or fresh

    def _gathered(self, name: str) -> Tensor:
        part = self._state()[name]
        parts = [torch.empty_like(part) for _ in range(self.num_ranks)]
        dist.all_gather(parts, part)
        # The last partition is padded.
        num_weights = sum(weight.numel() for weight in self.model.parameters())
        return torch.cat(parts)[:num_weights].cpu()
