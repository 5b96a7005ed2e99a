"""ConCare: one recurrence per feature, attention over visits, then attention across features.

Ma et al., "ConCare: Personalized Clinical Feature Embedding via Capturing the Healthcare Context",
AAAI 2020 (arXiv 1911.12216); `docs/concare.md` goes through it point by point.

Differences from the implementations in circulation are faults corrected here, each held by a test:
a batch of one works, padding changes nothing, layer normalisation is applied, DeCov runs over the
hidden units of each token, the attention returned is the softmax before dropout, the query of the
final attention is the demographic token, and time is real days.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ehr.config import TimeAttention
from ehr.expert.recurrence import FeatureRecurrence
from ehr.expert.visit_attention import VisitAttention

NUM_DEMOGRAPHICS = 2
"""Age and sex, the inputs of the demographic token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConCareShape:
    """The numbers that fix a ConCare network's parameters and dropout."""

    num_features: int
    hidden_size: int = 32
    num_heads: int = 4
    feedforward_size: int = 64
    dropout: float = 0.2
    time_attention: TimeAttention = TimeAttention.PAPER


@dataclass(frozen=True, slots=True, kw_only=True)
class ConCareOutput:
    """What one forward pass yields."""

    logit: Float[Tensor, " batch"]
    """Log-odds of the event."""
    attention: Float[Tensor, "batch tokens"]
    """Final attention before dropout; rows sum to 1; the last token is the demographic one."""
    decov: Float[Tensor, ""]
    """DeCov of the self-attention heads, summed over tokens; 0 for a batch of one."""


def decov(heads: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, ""]:
    """DeCov regulariser: half the squared off-diagonal covariance of each token's hidden units.

    Args:
        heads: concatenated head outputs; the covariance is over the batch, one matrix per token.

    Returns:
        Sum over tokens; 0 for a batch of one, whose covariance says nothing.
    """
    batch = heads.shape[0]
    centred = (heads - heads.mean(dim=0, keepdim=True)).transpose(0, 1)  # tokens, batch, hidden
    covariance = centred.transpose(1, 2) @ centred / max(batch - 1, 1)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    return 0.5 * (covariance.square().sum() - diagonal.square().sum())


class FeatureSelfAttention(nn.Module):
    """Multi-head self-attention across the tokens of a patient."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "batch tokens hidden"]
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Float[Tensor, "batch tokens hidden"]]:
        """The attended tokens, and the concatenated heads before their output projection."""
        batch, num_tokens, hidden = tokens.shape
        query, key, value = (
            part.view(batch, num_tokens, self.num_heads, -1).transpose(1, 2)
            for part in self.project(tokens).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(hidden // self.num_heads)
        heads = self.dropout(scores.softmax(dim=-1)) @ value
        heads = heads.transpose(1, 2).reshape(batch, num_tokens, hidden)
        return self.output(heads), heads


class ConCare(nn.Module):
    """The expert network: risk, and how much the final prediction attends to each feature."""

    def __init__(self, shape: ConCareShape) -> None:
        super().__init__()
        hidden = shape.hidden_size
        self.shape = shape
        self.recurrence = FeatureRecurrence(shape.num_features, hidden)
        self.visit_attention = VisitAttention(shape.num_features, hidden, shape.time_attention)
        self.demographic = nn.Linear(NUM_DEMOGRAPHICS, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.self_attention = FeatureSelfAttention(hidden, shape.num_heads, shape.dropout)
        self.feedforward_norm = nn.LayerNorm(hidden)
        self.feedforward = nn.Sequential(
            nn.Linear(hidden, shape.feedforward_size),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
            nn.Linear(shape.feedforward_size, hidden),
        )
        self.final_norm = nn.LayerNorm(hidden)
        self.final_query = nn.Linear(hidden, hidden)
        self.final_key = nn.Linear(hidden, hidden)
        self.final_value = nn.Linear(hidden, hidden)
        self.head = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(shape.dropout), nn.Linear(hidden, 1)
        )
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self,
        values: Float[Tensor, "batch visits features"],
        days: Float[Tensor, "batch visits"],
        lengths: Int[Tensor, " batch"],
        demographics: Float[Tensor, "batch 2"],
    ) -> ConCareOutput:
        """Risk and feature attention of each patient.

        Args:
            values: scaled and imputed values; what stands beyond a patient's length is ignored.
            days: days since each patient's first visit, ascending.
            lengths: number of visits, at least 1.
            demographics: scaled age and sex.

        All of it must be finite: `ehr.expert.member.collate` refuses other inputs. Here nothing is
        looked at (that would wait for the GPU): a NaN of a patient makes that patient's risk and
        attention NaN, an infinite value saturates its gates; other patients keep theirs.
        """
        summaries = self._summaries(values, days, lengths)

        demographic = torch.tanh(self.demographic(demographics)).unsqueeze(1)
        tokens = self.dropout(torch.cat([summaries, demographic], dim=1))
        attended, heads = self.self_attention(self.attention_norm(tokens))
        tokens = tokens + self.dropout(attended)
        tokens = tokens + self.dropout(self.feedforward(self.feedforward_norm(tokens)))
        tokens = self.final_norm(tokens)

        query = self.final_query(tokens[:, -1:])
        scores = (query @ self.final_key(tokens).transpose(1, 2)).squeeze(1)
        attention = F.softmax(scores / math.sqrt(self.shape.hidden_size), dim=-1)
        context = (self.dropout(attention).unsqueeze(1) @ self.final_value(tokens)).squeeze(1)
        return ConCareOutput(
            logit=self.head(context).squeeze(-1), attention=attention, decov=decov(heads)
        )

    def _summaries(
        self,
        values: Float[Tensor, "batch visits features"],
        days: Float[Tensor, "batch visits"],
        lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch features hidden"]:
        """Each feature's summary of its visits."""
        last = lengths - 1
        is_visit = torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)
        values = values.masked_fill(~is_visit.unsqueeze(-1), 0.0)
        elapsed = (days.gather(1, last.unsqueeze(1)) - days).masked_fill(~is_visit, 0.0)
        if values.device.type != "cpu":  # the GPU would have to say how many have each visit
            return self.visit_attention(self.recurrence(values), elapsed, is_visit, last)
        # Longest first: a visit then costs as much as there are patients who have it.
        order = lengths.argsort(descending=True)
        visits = slice(0, int(lengths.max()))
        is_visit = is_visit[order, visits]
        states = self.recurrence(values[order, visits], is_visit.sum(dim=0).tolist())
        summaries = self.visit_attention(states, elapsed[order, visits], is_visit, last[order])
        return summaries[order.argsort()]
