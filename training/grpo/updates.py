"""The learner's share of a step: old log-probabilities once, then M clipped updates (Eq. 9-18)."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ehr.errors import TrainingError
from training.config.grpo import GrpoSection
from training.grpo.batch import TrainedSequence, TrainingBatch
from training.grpo.learning_rate import learning_rate
from training.grpo.update_totals import UpdateTotals
from training.learner.allowed_tokens import AllowedTokens
from training.learner.learner import Learner
from training.learner.packing import (
    EVERY_TOKEN,
    PackedRow,
    TokenGroup,
    deal,
    pack,
)
from training.objective.advantage import check_finite
from training.objective.clip import min_max_clip_high
from training.objective.entropy import mean_salient_entropy
from training.objective.importance import generator_log_ratio, truncated_importance_weights
from training.objective.loss import LossDenominators, SampledTokens, policy_loss
from training.objective.risk import KnownRisks, expected_reward, expected_surrogate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    """A row of this rank, and what is known of its sequences."""

    row: PackedRow
    numbers: list[int]
    """Of its sequences in the whole batch."""
    sequences: list[TrainedSequence]
    old_logprobs: Tensor
    """[sequences, tokens]"""
    importance: Tensor | None
    """Truncated importance weights [sequences, tokens]; None = off."""
    risks: KnownRisks | None = None
    """Of the sequences with branches (`PackedRow.choices`); None = the row has none."""


class BatchTrainer:
    """Trains one batch on this rank; every rank holds one and calls the same methods.

    Args:
        learner: the rank's learner.
        section: objective and learning rate.
        max_row_tokens: token budget of a packed row.
        allowed_tokens: what patterns leave to choose from.
    """

    def __init__(
        self,
        learner: Learner,
        section: GrpoSection,
        max_row_tokens: int,
        allowed_tokens: AllowedTokens,
    ) -> None:
        self._learner = learner
        self._allowed_tokens = allowed_tokens
        self._section = section
        self._max_row_tokens = max_row_tokens

    def train(self, batch: TrainingBatch) -> dict[str, Any]:
        """Take the batch's updates; metrics over all ranks come back.

        Raises:
            TrainingError: if a log-probability, loss or gradient is not finite.
        """
        started = time.monotonic()
        totals = UpdateTotals(self._learner.model.device)
        entropy = _SequenceEntropy(batch, self._learner.model.device)
        updates = [
            [self._frozen(batch, update, row, entropy, totals) for row in rows]
            for update, rows in self._rows(batch)
        ]
        clip_high = self._clip_high(batch, entropy)
        old_done = time.monotonic()
        norms = []
        for update, works in zip(batch.updates, updates, strict=True):
            norms.append(self._update(batch, update, works, clip_high, totals))
        metrics = totals.metrics()
        return {
            "loss": metrics.pop("loss") / len(norms),
            "grad/norm": sum(norms) / len(norms),
            "learning_rate": learning_rate(batch.step, self._section),
            "clip/high_mean": float(clip_high.mean()),
            "entropy/salient_mean": entropy.mean(),
            **metrics,
            "time/old_logprob_s": old_done - started,
            "time/train_s": time.monotonic() - old_done,
        }

    def _rows(self, batch: TrainingBatch) -> Iterator[tuple[tuple[int, ...], list[PackedRow]]]:
        for update in batch.updates:
            groups = [self._prepared(batch, i) for i in update]
            rows = pack(groups, self._max_row_tokens)
            yield update, deal(rows, self._learner.num_ranks)[self._learner.rank]

    def _prepared(self, batch: TrainingBatch, number: int) -> TokenGroup:
        """A group with what its tokens were chosen from, and the branches of exact risks."""
        group, sequences = batch.groups[number], batch.sequences[number]
        allowed = tuple(
            self._allowed_tokens.of(response, trained, sequence.patterns)
            for response, trained, sequence in zip(
                group.responses, group.trained, sequences, strict=True
            )
        )
        branches = tuple(
            None
            if sequence.risk is None
            else self._allowed_tokens.number.branches(response, sequence.risk.start)
            for response, sequence in zip(group.responses, sequences, strict=True)
        )
        return replace(group, allowed=allowed, branches=branches)

    def _frozen(
        self,
        batch: TrainingBatch,
        update: tuple[int, ...],
        row: PackedRow,
        entropy: "_SequenceEntropy",
        totals: UpdateTotals,
    ) -> _Work:
        members = [(i, j) for i in update for j in range(len(batch.sequences[i]))]
        places = [members[sequence] for sequence in row.sequences]
        sequences = [batch.sequences[i][j] for i, j in places]
        flat_logprobs, flat_entropy, choices = self._learner.frozen_output(row)
        assert flat_entropy is not None, "frozen output has entropies"
        if not places:
            empty = torch.zeros(0, 0, device=flat_logprobs.device)
            return _Work(row=row, numbers=[], sequences=[], old_logprobs=empty, importance=None)
        logprobs, entropies = row.padded(flat_logprobs), row.padded(flat_entropy)
        mask = row.mask.to(logprobs.device)
        numbers = [entropy.number(i, j) for i, j in places]
        check_finite("log-probability", logprobs.sum(1), _names(sequences))
        salient = _padded([s.salient for s in sequences], torch.bool, mask.device) & mask
        entropy.put(numbers, *mean_salient_entropy(entropies, salient))
        totals.add_row(row.num_tokens, flat_entropy)
        return _Work(
            row=row,
            numbers=numbers,
            sequences=sequences,
            old_logprobs=logprobs,
            importance=self._importance(logprobs, row, mask, sequences, totals),
            risks=self._known_risks(choices, row, sequences, totals),
        )

    def _known_risks(
        self,
        choices: Tensor | None,
        row: PackedRow,
        sequences: list[TrainedSequence],
        totals: UpdateTotals,
    ) -> KnownRisks | None:
        if row.choices is None or choices is None:
            return None
        branched = [sequences[place] for place in row.choices.responses]
        credits = [each.risk for each in branched if each.risk is not None]
        check_finite("log-probability of a digit", choices.sum((1, 2)), _names(branched))
        known = KnownRisks(
            old_logp=choices,
            reward=choices.new_tensor([credit.rewards for credit in credits]),
            scale=choices.new_tensor([credit.scale for credit in credits]),
            pairs=tuple(self._allowed_tokens.number.pairs.values()),
        )
        totals.add_risks(expected_reward(known.old_logp, known.reward, known.pairs))
        return known

    def _importance(
        self,
        old_logprobs: Tensor,
        row: PackedRow,
        mask: Tensor,
        sequences: list[TrainedSequence],
        totals: UpdateTotals,
    ) -> Tensor | None:
        device = mask.device
        generated = _padded([s.generator_logprobs for s in sequences], torch.float32, device)
        constrained = _padded([s.constrained for s in sequences], torch.bool, device) & mask
        if row.allowed is not None:
            # Learner and generator chose from the same tokens there.
            is_followed = (row.allowed != EVERY_TOKEN).any(1).to(device)
            constrained &= ~row.padded(is_followed)
        measured = mask & ~constrained
        log_ratio = generator_log_ratio(old_logprobs, generated, measured, _names(sequences))
        totals.add_mismatch(log_ratio[measured], (generated - old_logprobs)[constrained])
        cap = self._section.importance_cap
        if cap is None:
            return None
        weights = truncated_importance_weights(log_ratio, cap)
        totals.add_importance(weights[mask], int((log_ratio.exp() > cap).sum()))
        return weights

    def _clip_high(self, batch: TrainingBatch, entropy: "_SequenceEntropy") -> Tensor:
        values, valid = entropy.gathered()
        section = self._section
        bounds = []
        start = 0
        for sequences in batch.sequences:
            group = slice(start, start + len(sequences))
            bounds.append(
                min_max_clip_high(
                    values[group],
                    valid[group],
                    section.clip_high_min,
                    section.clip_high_max,
                    section.clip_least_span,
                )
            )
            start += len(sequences)
        return torch.cat(bounds)

    def _update(
        self,
        batch: TrainingBatch,
        update: tuple[int, ...],
        works: list[_Work],
        clip_high: Tensor,
        totals: UpdateTotals,
    ) -> float:
        section = self._section
        denominators = LossDenominators(
            num_sequences=sum(len(batch.sequences[i]) for i in update),
            num_tokens=max(1, sum(sum(map(sum, batch.groups[i].trained)) for i in update)),
        )
        for work in works:
            logprobs, _, choices = self._learner.output(work.row)
            if not work.sequences:
                self._learner.backward(logprobs.sum() * 0)
                continue
            advantage = _padded(
                [s.advantages for s in work.sequences], torch.float32, logprobs.device
            )
            parts = policy_loss(
                work.row.padded(logprobs),
                SampledTokens(
                    old_logp=work.old_logprobs,
                    advantage=advantage,
                    mask=work.row.mask.to(logprobs.device),
                    importance_weight=work.importance,
                    sample_ids=_names(work.sequences),
                ),
                section.clip_low,
                clip_high[work.numbers],
                section.aggregation,
                denominators,
                clip_high_min=section.clip_high_min,
                expected=self._expected(choices, work, clip_high[work.numbers], totals),
            )
            self._learner.backward(parts.loss)
            totals.add_loss(
                float(parts.loss.detach()),
                parts.num_tokens,
                parts.num_clipped_low,
                parts.num_clipped_high,
                parts.num_adaptive,
            )
        try:
            return self._learner.step(learning_rate(batch.step, section))
        except TrainingError as error:
            patients = [batch.groups[i].patient_id for i in update]
            raise TrainingError(f"{error}; patients of this update: {patients[:5]!r}") from error

    def _expected(
        self, choices: Tensor | None, work: _Work, clip_high: Tensor, totals: UpdateTotals
    ) -> Tensor | None:
        """Surrogate [sequences] of the written risks, 0 where a sequence has no branches."""
        if work.risks is None or work.row.choices is None or choices is None:
            return None
        places = torch.tensor(work.row.choices.responses, device=choices.device)
        found = expected_surrogate(choices, work.risks, self._section.clip_low, clip_high[places])
        totals.add_clipped_risks(found.clipped)
        return choices.new_zeros(len(work.sequences)).index_add(0, places, found.surrogate)


class _SequenceEntropy:
    """H(tau) of every sequence of a batch, filled in by whichever rank has it."""

    def __init__(self, batch: TrainingBatch, device: torch.device) -> None:
        self._starts = [0]
        for sequences in batch.sequences:
            self._starts.append(self._starts[-1] + len(sequences))
        # Mean, and whether there were salient tokens at all.
        self._table = torch.zeros(2, self._starts[-1], device=device)
        self._is_gathered = False

    def number(self, group: int, member: int) -> int:
        """A sequence's number in the batch."""
        return self._starts[group] + member

    def put(self, numbers: list[int], mean: Tensor, valid: Tensor) -> None:
        """Values of some sequences."""
        self._table[0, numbers] = mean
        self._table[1, numbers] = valid.float()

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Values of all sequences and which are valid, the same on every rank."""
        if not self._is_gathered:
            dist.all_reduce(self._table)
            self._is_gathered = True
        return self._table[0], self._table[1] > 0

    def mean(self) -> float | None:
        """Mean over the sequences with salient tokens."""
        values, valid = self.gathered()
        return float(values[valid].mean()) if valid.any() else None


def _names(sequences: list[TrainedSequence]) -> list[str]:
    return [f"patient {sequence.patient_id}" for sequence in sequences]


def _padded(values: list[tuple], dtype: torch.dtype, device: torch.device) -> Tensor:
    lines = [torch.tensor(line, dtype=dtype, device=device) for line in values]
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
