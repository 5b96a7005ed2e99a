"""ConCare's answer for a patient depends on that patient alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ehr.config import TimeAttention
from ehr.expert.concare import ConCare, ConCareShape
from ehr.expert.member import ExpertBatch

FEATURES = 3


def network(form: TimeAttention) -> ConCare:
    torch.manual_seed(2)
    return ConCare(
        ConCareShape(
            num_features=FEATURES,
            hidden_size=8,
            num_heads=2,
            feedforward_size=8,
            time_attention=form,
        )
    ).eval()


MODELS = {form: network(form) for form in TimeAttention}


@st.composite
def batches(draw: st.DrawFn) -> tuple[ExpertBatch, list[int], int, float]:
    """A batch, an order of its patients, visits of padding, and what stands in the padding."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    size, longest = len(lengths), max(lengths)
    gaps = torch.rand(size, longest, generator=generator) * draw(st.sampled_from([0.04, 1.0, 90.0]))
    batch = ExpertBatch(
        values=torch.randn(size, longest, FEATURES, generator=generator) * 2,
        days=gaps.cumsum(dim=1),
        lengths=torch.tensor(lengths),
        demographics=torch.randn(size, 2, generator=generator),
    )
    order = draw(st.permutations(range(size)))
    filler = draw(st.sampled_from([0.0, -7.0, 1e30, float("nan"), float("inf")]))
    return batch, list(order), draw(st.integers(0, 9)), filler


@given(batches(), st.sampled_from(TimeAttention))
def test_padding_batch_size_and_order_change_nothing(
    drawn: tuple[ExpertBatch, list[int], int, float], form: TimeAttention
) -> None:
    batch, order, extra, filler = drawn
    model = MODELS[form]
    padding = torch.full((len(order), extra, FEATURES), filler)
    padded = ExpertBatch(
        values=torch.cat([batch.values[order], padding], dim=1),
        days=torch.cat([batch.days[order], padding[..., 0]], dim=1),
        lengths=batch.lengths[order],
        demographics=batch.demographics[order],
    )

    with torch.inference_mode():
        together = padded.through(model)
        alone = [batch.rows(torch.tensor([index])).through(model) for index in order]

    logit = torch.cat([output.logit for output in alone])
    attention = torch.cat([output.attention for output in alone])
    torch.testing.assert_close(together.logit, logit, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.attention, attention, atol=1e-6, rtol=0)
