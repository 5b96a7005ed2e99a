"""One member of the expert ensemble: which patients it sees, its training, its file."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ehr.config import ExpertSection
from ehr.errors import DataError, TrainingError
from ehr.expert.concare import ConCare, ConCareOutput, ConCareShape
from ehr.expert.plans import (
    MemberPlan,
)
from ehr.expert.view import ExpertInput

PREDICT_PATIENTS = 128
"""Patients in one forward pass without gradients: bounds memory, changes no result."""


_WEIGHT_DECAY = 1e-2
"""AdamW's own default; ConCare publishes none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberState:
    """What training one member yields."""

    parameters: dict[str, Tensor]
    """Parameters after the epoch that is kept, on the CPU."""
    best_epoch: int
    """The epoch that is kept, from 1: that with the lowest loss, or the whole ensemble's choice."""
    num_epochs: int
    """Epochs run before patience or the limit ended training."""
    validation_loss: float
    """Binary cross-entropy of the held-out patients (the validation split, or the other half of
    the training patients) after that epoch."""
    losses: tuple[float, ...] = ()
    """The same after every epoch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """A trained member."""

    plan: MemberPlan
    state: MemberState
    key: str
    """`member_key` of what it was trained from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertBatch:
    """Patients padded to one number of visits, on one device."""

    values: Float[Tensor, "batch visits features"]
    days: Float[Tensor, "batch visits"]
    lengths: Int[Tensor, " batch"]
    demographics: Float[Tensor, "batch 2"]

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of `ConCare.forward`, in order."""
        return self.values, self.days, self.lengths, self.demographics

    def through(self, model: ConCare) -> ConCareOutput:
        """The network's output for these patients."""
        return model(*self.arguments())

    def rows(self, index: Int[Tensor, " rows"]) -> "ExpertBatch":
        """Some of the patients, padded no further than these need."""
        lengths = self.lengths[index]
        num_visits = int(lengths.max())
        return ExpertBatch(
            values=self.values[index, :num_visits],
            days=self.days[index, :num_visits],
            lengths=lengths,
            demographics=self.demographics[index],
        )


def collate(inputs: Sequence[ExpertInput], device: torch.device) -> ExpertBatch:
    """Patients as one padded batch.

    Raises:
        DataError: if there is no patient, or one has no visit, other features than the first, or
            values that are not finite.
    """
    if not inputs:
        raise DataError("The expert needs at least one patient, got none.")
    num_features = inputs[0].values.shape[-1]
    for entry in inputs:
        _check_input(entry, num_features)
    lengths = [len(entry.values) for entry in inputs]
    values = torch.zeros(len(inputs), max(lengths), num_features)
    days = torch.zeros(len(inputs), max(lengths))
    for row, entry in enumerate(inputs):
        values[row, : lengths[row]] = torch.from_numpy(entry.values)
        days[row, : lengths[row]] = torch.from_numpy(entry.days)
    demographics = torch.from_numpy(np.stack([entry.demographics for entry in inputs]))
    return ExpertBatch(
        values=values.to(device),
        days=days.to(device),
        lengths=torch.tensor(lengths, device=device),
        demographics=demographics.to(device),
    )


def _check_input(entry: ExpertInput, num_features: int) -> None:
    if entry.values.shape != (len(entry.days), num_features) or not len(entry.days):
        raise DataError(
            f"Patient {entry.patient_id!r} must have at least one visit with {num_features} "
            f"features, got values of shape {entry.values.shape} for {len(entry.days)} visits. "
            "Drop patients without visits from the cohort."
        )
    for name in ("values", "days", "demographics"):
        if not np.isfinite(getattr(entry, name)).all():
            raise DataError(
                f"The expert's {name} of patient {entry.patient_id!r} must be finite, got NaN or "
                "infinity. Build the input with the cohort's ExpertScaler, which fills what is "
                "missing, and check the raw values."
            )


def fit_member(
    inputs: Sequence[ExpertInput],
    labels: Sequence[int],
    train_idx: Sequence[int],
    val_idx: Sequence[int],
    section: ExpertSection,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    device: torch.device | None = None,
) -> MemberState:
    """Trains one ConCare network with AdamW; the epoch with the lowest validation loss is kept.

    The result depends on the arguments alone: not on the process, nor on members trained before.

    Args:
        inputs: patients, of which only those of the two index lists are read.
        labels: 0 or 1 for each of `inputs`.
        train_idx: positions of the patients to train on.
        val_idx: positions of the patients whose loss stops training.
        section: the network's sizes and the training settings.
        seed: of initial weights, dropout and the order of patients.
        on_epoch: called after each epoch with its number and its validation loss.
        device: where to train; the CPU by default.

    Raises:
        DataError: if a split is empty or an input is not finite.
        TrainingError: if the loss stops being finite.
    """
    best: dict[str, Tensor] = {}
    best_epoch, losses = 0, []

    def after(model: ConCare, loss: float) -> bool:
        nonlocal best, best_epoch
        losses.append(loss)
        if loss == min(losses) and losses.count(loss) == 1:
            best_epoch = len(losses)
            best = copy.deepcopy(model.state_dict())
        if on_epoch is not None:
            on_epoch(len(losses), loss)
        return len(losses) - best_epoch < section.patience

    _train(inputs, labels, (train_idx, val_idx), section, seed, after, device)
    return MemberState(
        parameters={name: value.cpu() for name, value in best.items()},
        best_epoch=best_epoch,
        num_epochs=len(losses),
        validation_loss=losses[best_epoch - 1],
        losses=tuple(losses),
    )


def trace_member(
    inputs: Sequence[ExpertInput],
    labels: Sequence[int],
    train_idx: Sequence[int],
    held_out_idx: Sequence[int],
    section: ExpertSection,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    device: torch.device | None = None,
) -> MemberState:
    """Trains one network for all epochs; every epoch's parameters are kept, to choose from later.

    Arguments and errors are those of `fit_member`, with held-out patients for validation ones.

    Returns:
        Parameters stacked along a first axis of epochs; `best_epoch` 0 says that none is chosen,
        and `validation_loss` is the last one's. `settled` makes the member of it.
    """
    epochs: list[dict[str, Tensor]] = []
    losses: list[float] = []

    def after(model: ConCare, loss: float) -> bool:
        losses.append(loss)
        epochs.append({name: value.cpu().clone() for name, value in model.state_dict().items()})
        if on_epoch is not None:
            on_epoch(len(losses), loss)
        return True

    _train(inputs, labels, (train_idx, held_out_idx), section, seed, after, device)
    return MemberState(
        parameters={name: torch.stack([each[name] for each in epochs]) for name in epochs[0]},
        best_epoch=0,
        num_epochs=len(losses),
        validation_loss=losses[-1],
        losses=tuple(losses),
    )


def settled(trace: MemberState, epoch: int) -> MemberState:
    """The member as it was after one epoch (from 1) of what `trace_member` kept."""
    assert trace.best_epoch == 0, "a settled member has one epoch's parameters"
    return replace(
        trace,
        parameters={name: value[epoch - 1].clone() for name, value in trace.parameters.items()},
        best_epoch=epoch,
        validation_loss=trace.losses[epoch - 1],
    )


def _train(
    inputs: Sequence[ExpertInput],
    labels: Sequence[int],
    split: tuple[Sequence[int], Sequence[int]],
    section: ExpertSection,
    seed: int,
    after_epoch: Callable[[ConCare, float], bool],
    device: torch.device | None,
) -> None:
    """Trains on the first patients of `split`; `after_epoch` gets the others' loss, may end it."""
    device = device or torch.device("cpu")
    train_idx, held_out_idx = split
    if not len(train_idx) or not len(held_out_idx):
        raise DataError(
            f"An expert member needs training and validation patients, got {len(train_idx)} and "
            f"{len(held_out_idx)}. Raise cohort.num_patients or cohort.validation_fraction."
        )
    training = collate([inputs[index] for index in train_idx], device)
    held_out = collate([inputs[index] for index in held_out_idx], device)
    targets = torch.tensor([float(labels[index]) for index in train_idx], device=device)
    held_out_targets = torch.tensor([float(labels[index]) for index in held_out_idx], device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = ConCare(concare_shape(section, training.values.shape[-1])).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=section.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True
        )
        for epoch in range(1, section.epochs + 1):
            model.train()
            for rows in torch.randperm(len(targets)).split(section.batch_size):
                rows = rows.to(device)
                output = training.rows(rows).through(model)
                loss = F.binary_cross_entropy_with_logits(output.logit, targets[rows])
                loss = loss + section.decov_weight * output.decov
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            held_out_loss = _loss(model, held_out, held_out_targets)
            if not np.isfinite(held_out_loss):
                raise TrainingError(
                    f"The expert's validation loss must be finite, got {held_out_loss} in epoch "
                    f"{epoch} (seed {seed}). Lower expert.learning_rate or expert.decov_weight."
                )
            if not after_epoch(model, held_out_loss):
                return


def _loss(model: ConCare, batch: ExpertBatch, targets: Tensor) -> float:
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for rows in torch.arange(len(targets), device=targets.device).split(PREDICT_PATIENTS):
            logit = batch.rows(rows).through(model).logit
            loss = F.binary_cross_entropy_with_logits(logit, targets[rows], reduction="sum")
            total += float(loss)
    return total / len(targets)


def concare_shape(section: ExpertSection, num_features: int) -> ConCareShape:
    """The network's numbers: sizes from the section, features from the cohort."""
    return ConCareShape(
        num_features=num_features,
        hidden_size=section.hidden_size,
        num_heads=section.num_heads,
        feedforward_size=section.feedforward_size,
        dropout=section.dropout,
        time_attention=section.time_attention,
    )
