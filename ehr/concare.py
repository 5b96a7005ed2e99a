"""ConCare: one recurrence per feature, attention over visits, then attention across features.

Differences from the implementations in circulation are faults corrected here, each held by a test:
a batch of one works, padding changes nothing, layer normalisation is applied, DeCov runs over the
hidden units of each token, the attention returned is the softmax before dropout, the query of the
final attention is the demographic token, and time is real days.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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


class FeatureRecurrence(nn.Module):
    """One GRU per feature, all of them advanced together by one batched matrix product a visit.

    Gates stand in the order of `torch.nn.GRU` (reset, update, new) and follow its equations.
    """

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)  # torch.nn.GRU's initial range

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        self.weight_input = uniform(num_features, 3 * hidden_size)
        self.weight_hidden = uniform(num_features, hidden_size, 3 * hidden_size)
        self.bias_input = uniform(num_features, 3 * hidden_size)
        self.bias_hidden = uniform(num_features, 3 * hidden_size)

    def forward(
        self, values: Float[Tensor, "batch visits features"]
    ) -> Float[Tensor, "features batch visits hidden"]:
        """Hidden state of every feature after every visit."""
        batch, num_visits, num_features = values.shape
        bias_input, bias_hidden = self.bias_input.unsqueeze(1), self.bias_hidden.unsqueeze(1)
        hidden = values.new_zeros(num_features, batch, self.weight_hidden.shape[1])
        states: list[Tensor] = []
        for visit in range(num_visits):
            value = values[:, visit].t().unsqueeze(-1)  # features, batch, 1
            from_input = value * self.weight_input.unsqueeze(1) + bias_input
            from_hidden = torch.baddbmm(bias_hidden, hidden, self.weight_hidden)
            reset_in, update_in, new_in = from_input.chunk(3, dim=-1)
            reset_hidden, update_hidden, new_hidden = from_hidden.chunk(3, dim=-1)
            reset = torch.sigmoid(reset_in + reset_hidden)
            update = torch.sigmoid(update_in + update_hidden)
            new = torch.tanh(new_in + reset * new_hidden)
            hidden = new + update * (hidden - new)
            states.append(hidden)
        return torch.stack(states, dim=2)


class VisitAttention(nn.Module):
    """Time-aware attention over the visits of each feature, queried by the last real visit.

    A visit's score falls with the days between it and the last visit, at a rate that each feature
    learns, and more slowly the better its state matches the query.
    """

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_features, hidden_size, hidden_size))
        self.key = nn.Parameter(torch.empty(num_features, hidden_size, hidden_size))
        self.rate = nn.Parameter(torch.full((num_features,), 0.8))
        for feature in range(num_features):
            nn.init.xavier_uniform_(self.query[feature])
            nn.init.xavier_uniform_(self.key[feature])

    def forward(
        self,
        states: Float[Tensor, "features batch visits hidden"],
        elapsed: Float[Tensor, "batch visits"],
        is_visit: Bool[Tensor, "batch visits"],
        last: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch features hidden"]:
        """Each feature's summary of its visits.

        Args:
            states: hidden state of every feature after every visit.
            elapsed: days between each visit and the patient's last one.
            is_visit: false on padding.
            last: index of each patient's last visit.
        """
        features, _, _, hidden = states.shape
        index = last.view(1, -1, 1, 1).expand(features, -1, 1, hidden)
        # query . (K state) = (K^T query) . state: one product per patient instead of per visit.
        query = states.gather(2, index).squeeze(2) @ self.query @ self.key.transpose(1, 2)
        match = torch.sigmoid((states @ query.unsqueeze(-1)).squeeze(-1) / math.sqrt(hidden))
        decay = torch.log(math.e + (1 - match) * elapsed)
        score = match / (torch.sigmoid(self.rate).view(-1, 1, 1) * decay)
        weights = score.masked_fill(~is_visit, -math.inf).softmax(dim=-1)
        return (weights.unsqueeze(-1) * states).sum(dim=2).transpose(0, 1)


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
        self.visit_attention = VisitAttention(shape.num_features, hidden)
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
        """
        last = lengths - 1
        is_visit = torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)
        values = values.masked_fill(~is_visit.unsqueeze(-1), 0.0)
        elapsed = (days.gather(1, last.unsqueeze(1)) - days).masked_fill(~is_visit, 0.0)
        summaries = self.visit_attention(self.recurrence(values), elapsed, is_visit, last)

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
