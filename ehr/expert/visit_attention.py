"""Time-aware attention over the visits of each feature, in the forms that were published.

All of them compare the last visit's hidden state with every visit's, know how long ago the visit
was, and sum the states by the softmax of a score. They differ in the score (`TimeAttention`). With
q and k the projections of the two states, match = sigmoid(q . k), and dt the time since the visit:

    paper       tanh(q . k / (beta log(e + (1 - match) dt)))
    concat      v . tanh(W [last state; state; dt])
    pyhealth    match / (sigmoid(rate) log(e + 1 - match) (dt + 1))

`paper` is the equation of Ma et al., AAAI 2020 (arXiv 1911.12216), and the type `new` in the
authors' code (Accountable-Machine-Intelligence/ConCare, model.py at 51e2137); `concat` is the type
which that code builds its network with; `pyhealth` is what PyHealth (pyhealth/models/concare.py)
and pyehr (models/concare.py) run, time outside the logarithm. beta and rate are one number per
feature, 0.8 at first, and projections have 8 units, as in all of that code. Three things differ
from it on purpose: time is days and not the difference of row numbers; e is not rounded (2.71828,
2.72); and what cannot change the softmax (a bias added to all scores, a ReLU over positive numbers)
is left out.
"""

import math
from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehr.config import TimeAttention

_UNITS = 8
"""Width of the projections in the authors' code; the paper names none."""


class VisitAttention(nn.Module):
    """Summary of each feature's visits, queried by the last real visit."""

    def __init__(self, num_features: int, hidden_size: int, form: TimeAttention) -> None:
        super().__init__()
        self.form = form
        self.query = _projection(num_features, hidden_size)
        self.key = _projection(num_features, hidden_size)
        if form is TimeAttention.CONCAT:
            self.of_time = _projection(num_features, 1)
            self.output = _projection(num_features, 1)
        else:
            self.rate = nn.Parameter(torch.full((num_features,), 0.8))

    def forward(
        self,
        states: Float[Tensor, "features visits batch hidden"],
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
        features, _, batch, hidden = states.shape
        index = last.view(1, 1, batch, 1).expand(features, 1, batch, hidden)
        query = states.gather(1, index).squeeze(1) @ self.query  # features, batch, units
        score = self._score(query, states, elapsed.t())
        weights = score.masked_fill(~is_visit.t(), -math.inf).softmax(dim=1)
        return (weights.unsqueeze(-1) * states).sum(dim=1).transpose(0, 1)

    def _score(
        self,
        query: Float[Tensor, "features batch units"],
        states: Float[Tensor, "features visits batch hidden"],
        elapsed: Float[Tensor, "visits batch"],
    ) -> Float[Tensor, "features visits batch"]:
        if self.form is TimeAttention.CONCAT:
            keys = states @ self.key.unsqueeze(1)
            time = elapsed.unsqueeze(-1) * self.of_time.unsqueeze(1)
            inner = torch.tanh(query.unsqueeze(1) + keys + time)
            return (inner * self.output.unsqueeze(1)).sum(dim=-1)
        # query . (K state) = (K^T query) . state: one product per patient instead of per visit.
        query = query @ self.key.transpose(1, 2)
        product = (states * query.unsqueeze(1)).sum(dim=-1)
        match = torch.sigmoid(product)
        rate = self.rate.view(-1, 1, 1)
        if self.form is TimeAttention.PAPER:
            return torch.tanh(product / (rate * torch.log(math.e + (1 - match) * elapsed)))
        if self.form is TimeAttention.PYHEALTH:
            decay = torch.log(math.e + (1 - match)) * (elapsed + 1)
            return match / (torch.sigmoid(rate) * decay)
        assert_never(self.form)


def _projection(num_features: int, size: int) -> nn.Parameter:
    weight = torch.empty(num_features, size, _UNITS)
    for feature in weight:
        nn.init.xavier_uniform_(feature)
    return nn.Parameter(weight)
