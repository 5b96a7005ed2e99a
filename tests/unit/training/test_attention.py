import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learner.attention import _attend_by_kernel, attend_shared_prompt
from training.learner.packing import BranchSpan, Span

KEYS_WIDTH = 8


def spans_of(*groups):
    """Spans of groups given as (prompt length, response lengths, branches).

    Branches are none, or for each response the tokens that they stand behind and how many.
    """
    spans, at = [], 0
    for prompt, responses, *branches in groups:
        start, at = at, at + prompt
        places = []
        for length in responses:
            places.append((at, at + length))
            at += length
        branch_spans = []
        for (first, _), (before, number) in zip(places, *branches, strict=True) if branches else ():
            branch_spans.append(BranchSpan((at, at + number), (first, first + before)))
            at += number
        spans.append(Span((start, start + prompt), tuple(places), tuple(branch_spans)))
    return tuple(spans)


def inputs(spans, heads=4, kv_heads=2, dtype=torch.float32, size=1.0):
    """Query, key, value as transformers hands them over, and an output gradient."""
    generator = torch.Generator().manual_seed(0)
    ends = [(*s.responses, *(b.tokens for b in s.branches))[-1][1] for s in spans]
    tokens = max(ends)
    shapes = [(1, tokens, n, KEYS_WIDTH) for n in (heads, kv_heads, kv_heads)]
    tensors = [size * torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]
    grad = torch.randn(1, tokens, heads, KEYS_WIDTH, generator=generator).to(dtype)
    return [t.to(dtype).requires_grad_() for t in tensors], grad


def visible(spans, tokens):
    """Which key each token of the row sees, token by token."""
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span in spans:
        for first, last in (span.prompt, *span.responses):
            for token in range(first, last):
                seen[token, first : token + 1] = True
                if first != span.prompt[0]:
                    seen[token, slice(*span.prompt)] = True
        for branch in span.branches:
            for token in range(*branch.tokens):
                seen[token, slice(*span.prompt)] = seen[token, slice(*branch.before)] = True
                seen[token, token] = True
    return seen


def masked(spans, query, key, value):
    """The same attention over the whole row under one mask."""
    mask = visible(spans, query.shape[2])
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return attended.transpose(1, 2)


def found(spans, tensors, grad, attend):
    output = attend(spans, *tensors)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad)]


def by_kernel(spans, query, key, value):
    """What accelerators do, on the CPU."""
    return _attend_by_kernel(query, key, value, KEYS_WIDTH**-0.5, spans)


def ours(spans, query, key, value):
    return attend_shared_prompt(torch.nn.Module(), query, key, value, None, spans=spans)[0]


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([(5, (3, 4))], id="one group in one block"),
        pytest.param([(500, (3, 400, 2, 800, 384))], id="longer than a block"),
        pytest.param([(3, (200, 200, 200, 1))], id="several blocks of short responses"),
        pytest.param([(1, (1,)), (7, (2, 9)), (4, (30,))], id="several groups"),
        pytest.param([(5, (3, 4), ((2, 3), (1, 1)))], id="branches"),
        pytest.param([(900, (300, 9), ((299, 10), (7, 10))), (3, (4,))], id="long and branched"),
    ],
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("attend", [ours, by_kernel])
def test_values_and_gradients_equal_attention_under_a_mask(groups, kv_heads, attend):
    spans = spans_of(*groups)
    tensors, grad = inputs(spans, kv_heads=kv_heads)

    for mine, theirs in zip(
        found(spans, tensors, grad, attend), found(spans, tensors, grad, masked), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4))
        | st.tuples(
            st.integers(1, 12),
            st.tuples(st.integers(3, 9)),
            st.tuples(st.tuples(st.integers(1, 3), st.integers(1, 5))),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_layout_of_a_row_equals_attention_under_a_mask(groups):
    spans = spans_of(*groups)
    tensors, grad = inputs(spans)

    for mine, theirs in zip(
        found(spans, tensors, grad, ours), found(spans, tensors, grad, masked), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_an_unsampled_key_far_above_the_others_is_found_by_the_second_look():
    spans = spans_of((90, (20,)))
    (query, key, value), grad = inputs(spans)
    key = key.detach()
    key[:, :, 11] = 300 * query.detach()[:, ::2, 95]
    tensors = [query, key.requires_grad_(), value]

    for mine, theirs in zip(
        found(spans, tensors, grad, ours), found(spans, tensors, grad, masked), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("score", [60.0, 75.0, 86.0, 88.0, 89.0, 90.0, 91.0, 200.0])
def test_an_unsampled_key_whose_exponential_hardly_fits_overflows_nowhere(score):
    spans = spans_of((90, (20,)))
    (query, key, value), grad = inputs(spans)
    key, row = key.detach(), query.detach()[0, 0, 95]
    key[0, 0, 11] = score * KEYS_WIDTH**0.5 * row / row.square().sum()
    tensors = [query, key.requires_grad_(), (10 * value).detach().requires_grad_()]

    for mine, theirs in zip(
        found(spans, tensors, grad, ours), found(spans, tensors, grad, masked), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


def test_scores_beyond_the_range_of_the_exponential_stay_finite_and_exact():
    spans = spans_of((40, (20, 30)))
    tensors, grad = inputs(spans, size=12.0)

    for mine, theirs in zip(
        found(spans, tensors, grad, ours), found(spans, tensors, grad, masked), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_bf16_is_about_as_near_to_fp32_as_the_stock_kernel_is(size):
    spans = spans_of((300, (60, 90, 150)))
    low, grad = inputs(spans, dtype=torch.bfloat16, size=size)
    full = [t.detach().float().requires_grad_() for t in low]
    exact = found(spans, full, grad.float(), masked)

    stock = found(spans, low, grad, masked)
    blocks = found(spans, low, grad, ours)

    for mine, theirs, truth in zip(blocks, stock, exact, strict=True):
        error, allowed = ((x.float() - truth).norm() for x in (mine, theirs))
        assert error <= 4 * allowed


def test_a_branch_sees_neither_its_neighbours_nor_what_stands_behind_its_place():
    spans = spans_of((6, (4,), ((2, 3),)))
    (query, key, value), _ = inputs(spans)
    changed = value.detach().clone()
    changed[:, :, [8, 9, 11]] += 1.0  # behind the place, and the second branch

    difference = ours(spans, query, key, changed) - ours(spans, query, key, value)

    assert not difference[:, [10, 12]].any()
    assert difference[:, 11].abs().min() > 0


def test_no_token_is_influenced_by_another_response():
    spans = spans_of((6, (4, 5)))
    (query, key, value), _ = inputs(spans)
    changed = value.detach().clone()
    changed[:, :, 6:10] += 1.0

    difference = ours(spans, query, key, changed) - ours(spans, query, key, value)

    assert difference[:, 6:10].abs().min() > 0
    assert not difference[:, :6].any()
    assert not difference[:, 10:].any()
