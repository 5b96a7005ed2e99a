"""Attention of packed rows: forward and backward as blocks of plain matrix products.

A prompt is causal over itself; a response sees all of its prompt and, causally, itself; a branch
sees the prompt, its response up to the place that it stands for, and itself. On CPUs the
kernel of `scaled_dot_product_attention` spends most of its backward pass outside its matrix
products, so rows are cut here into blocks of queries and each block's scores are held once, in the
weights' precision, in a buffer that stays in the cache. The backward pass computes the scores again
from queries, keys and the log-sum-exp of each query (FlashAttention, arXiv:2205.14135, section
3.1), with two passes over them besides the products: the log-sum-exp is subtracted inside the
product of queries and keys, and the row sums of the softmax's derivative inside that of output
gradients and values, as additional columns. Accelerators have fused kernels and use those.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehr.errors import ModelError, TrainingError
from training.learner.packing import Span

ATTENTION_NAME = "eag_rl_shared_prompt"
"""Name under which transformers knows `attend_shared_prompt`."""

_UNKNOWN = frozenset({"softcap", "s_aux", "sliding_window", "position_bias"})
"""What transformers' attention functions may be asked for beside it: a limit of the scores
(Gemma 2), sinks (gpt-oss), windows, biases by distance. Left out, they are wrong by little in a
random model and by much in a trained one."""
_BLOCK_QUERIES = 768
"""Rows of a block's score matrix, query heads of a group counted: large enough for the matrix
product's full rate, small enough for the scores (2.7 MB at 1,756 keys) to stay in the cache."""
_LARGEST_SUM = 1e30
"""Of a row's exponentials: far enough from the largest float for their products with values."""
_SAMPLED_KEYS = 8
"""Every so many keys are looked at for a row's offset (`_exponentials`)."""


def attend_shared_prompt(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    spans: tuple[Span, ...] | None = None,
    **more: object,
) -> tuple[Float[Tensor, "1 tokens heads width"], None]:
    """Attention of a packed row, with the call shape of transformers' attention interface.

    Dropout is not applied: neither stage uses it.

    Raises:
        TrainingError: if the call does not come through `PolicyModel`, which names the spans.
        ModelError: if the model wants an attention that is more than the softmax of products.
    """
    if wanted := sorted(name for name in _UNKNOWN if more.get(name) is not None):
        raise ModelError(
            f"the learner's attention has no {', '.join(wanted)}, which "
            f"{type(module).__name__} asks for; choose a model without, such as one of Llama or "
            "Qwen2.5"
        )
    if spans is None:
        raise TrainingError(
            f"the attention {ATTENTION_NAME!r} reads packed rows only, got a call without `spans`; "
            "call `PolicyModel`"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type != "cpu":
        return _attend_by_kernel(query, key, value, scale, spans), None
    num_rows = max(_BLOCK_QUERIES * key.shape[1] // query.shape[1], 32)
    output = _BlockAttention.apply(query[0], key[0], value[0], scale, _blocks(spans, num_rows))
    return output[None], None


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Consecutive queries that see the same keys, but for the last of them."""

    first: int
    last: int
    keys: tuple[tuple[int, int], ...]
    """Positions of the keys in the row, as ranges."""
    hidden: Bool[Tensor, "queries tail"]
    """Which of the last keys each query does not see; it sees all keys before them."""

    def gathered(self, rows: Float[Tensor, "tokens width"]) -> Float[Tensor, "keys width"]:
        parts = [rows[start:stop] for start, stop in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def add_to(
        self, rows: Float[Tensor, "tokens width"], gradient: Float[Tensor, "keys width"]
    ) -> None:
        offset = 0
        for start, stop in self.keys:
            rows[start:stop] += gradient[offset : offset + stop - start]
            offset += stop - start

    @property
    def num_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


# The same for every layer of a model and for the backward pass.
@lru_cache(maxsize=4)
def _blocks(spans: tuple[Span, ...], num_rows: int) -> tuple[_Block, ...]:
    blocks = []
    for span in spans:
        start, stop = span.prompt
        for first in range(start, stop, num_rows):
            last = min(first + num_rows, stop)
            blocks.append(_Block(first, last, ((start, last),), _causal((last - first,))))
        short: list[tuple[int, int]] = []
        for first, last in span.responses:
            if short and last - short[0][0] > num_rows:
                blocks.append(_short_block(span.prompt, short))
                short = []
            if last - first <= num_rows:
                short.append((first, last))
                continue
            for row in range(first, last, num_rows):
                end = min(row + num_rows, last)
                keys = (span.prompt, (first, end))
                blocks.append(_Block(row, end, keys, _causal((end - row,))))
        if short:
            blocks.append(_short_block(span.prompt, short))
        for branch in span.branches:
            first, last = branch.tokens
            keys = (span.prompt, branch.before, branch.tokens)
            blocks.append(_Block(first, last, keys, _causal((1,) * (last - first))))
    return tuple(blocks)


def _short_block(prompt: tuple[int, int], responses: list[tuple[int, int]]) -> _Block:
    """Whole responses that stand one behind the other."""
    first, last = responses[0][0], responses[-1][1]
    lengths = tuple(stop - start for start, stop in responses)
    return _Block(first, last, (prompt, (first, last)), _causal(lengths))


def _causal(lengths: tuple[int, ...]) -> Bool[Tensor, "queries queries"]:
    """What tokens of consecutive sequences do not see of each other."""
    seen = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    return ~torch.block_diag(*seen).bool()


class _BlockAttention(torch.autograd.Function):
    """Inputs [heads, tokens, width] and [kv_heads, tokens, width], output [tokens, heads, width].

    The query heads that share a head of keys are rows of one product. Names: P are the
    probabilities, dP the gradient with respect to them, dS that of the scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        blocks: tuple[_Block, ...],
    ) -> Tensor:
        num_heads, num_tokens, width = query.shape
        groups = num_heads // key.shape[0]
        output = query.new_empty(num_tokens, num_heads, width)
        log_sums = query.new_empty(num_heads, num_tokens, dtype=torch.float32)
        buffer = _score_buffer(query, groups, blocks)
        for head in range(key.shape[0]):
            heads = slice(head * groups, (head + 1) * groups)
            keys = F.pad(key[head], (0, 2), value=1.0)
            for block in blocks:
                rows = slice(block.first, block.last)
                queries = query[heads, rows].reshape(-1, width)
                scores = _matrix(buffer, groups, block)
                total, offset = _exponentials(
                    scores, queries, block.gathered(keys), scale, groups, block
                )
                attended = torch.mm(scores, block.gathered(value[head])) / total[:, None]
                output[rows, heads] = attended.view(groups, -1, width).transpose(0, 1)
                log_sums[heads, rows] = (total.log() + scale * offset).view(groups, -1)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.scale, ctx.blocks = scale, blocks
        return output

    # torch annotates neither its decorator nor that backward takes as many gradients as outputs.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, log_sums = ctx.saved_tensors
        scale = ctx.scale
        num_heads, num_tokens, width = query.shape
        kv_heads = key.shape[0]
        groups = num_heads // kv_heads
        # Gradients have the memory order of the projections' outputs.
        grad_query = query.new_empty(num_tokens, num_heads, width)
        grad_key = key.new_zeros(num_tokens, kv_heads, width, dtype=torch.float32)
        grad_value = torch.zeros_like(grad_key)
        row_sums = (grad_output.float() * output).sum(-1).t()
        buffer = _score_buffer(query, groups, ctx.blocks)
        second_buffer = torch.empty_like(buffer)
        for head in range(kv_heads):
            heads = slice(head * groups, (head + 1) * groups)
            queries = _with_subtrahend(query[heads], log_sums[heads] / scale)
            grads = _with_subtrahend(grad_output[:, heads].transpose(0, 1), row_sums[heads])
            keys = F.pad(key[head], (0, 2), value=1.0)
            values = F.pad(value[head], (0, 2), value=1.0)
            for block in ctx.blocks:
                rows = slice(block.first, block.last)
                block_queries = queries[:, rows].reshape(-1, width + 2)
                block_grads = grads[:, rows].reshape(-1, width + 2)
                block_keys = block.gathered(keys)
                probabilities = _matrix(buffer, groups, block)
                _multiply(block_queries, block_keys, scale, probabilities)
                _hide(probabilities, groups, block)
                probabilities.exp_()
                block.add_to(
                    grad_value[:, head], torch.mm(probabilities.t(), block_grads[:, :width])
                )
                grad_scores = _matrix(second_buffer, groups, block)
                _multiply(block_grads, block.gathered(values), scale, grad_scores)
                grad_scores.mul_(probabilities)
                block.add_to(grad_key[:, head], torch.mm(grad_scores.t(), block_queries[:, :width]))
                found = torch.mm(grad_scores, block_keys[:, :width])
                grad_query[rows, heads] = found.view(groups, -1, width).transpose(0, 1)
        return (
            grad_query.transpose(0, 1),
            grad_key.to(key.dtype).transpose(0, 1),
            grad_value.to(value.dtype).transpose(0, 1),
            None,
            None,
        )


def _exponentials(
    scores: Float[Tensor, "queries keys"],
    queries: Float[Tensor, "queries width"],
    keys: Float[Tensor, "keys width+2"],
    scale: float,
    groups: int,
    block: _Block,
) -> tuple[Float[Tensor, " queries"], Float[Tensor, " queries"]]:
    """Fill `scores` with exp(scale * (q k - offset)); the row sums and the offsets come back.

    Any offset is right that is near enough to the row's largest product for the exponentials to
    stay in range, and the nearer it is, the less the low precision of the scores costs. Where most
    keys are seen by all queries of the block, the largest product with some of these is one, nearly
    always.
    """
    tail = block.hidden.shape[1]
    if keys.shape[0] > 3 * tail:
        sample = keys[:-tail:_SAMPLED_KEYS, :-2]
        offset = torch.mm(queries, sample.t()).amax(-1).float()
        total = _filled(scores, queries, keys, offset, scale, groups, block)
        if bool(total.amax() <= _LARGEST_SUM):  # NaN is not
            return total, offset
    _multiply(queries, keys[:, :-2], 1.0, scores)
    _hide(scores, groups, block)
    offset = scores.amax(-1).float()
    return _filled(scores, queries, keys, offset, scale, groups, block), offset


def _filled(
    scores: Float[Tensor, "queries keys"],
    queries: Float[Tensor, "queries width"],
    keys: Float[Tensor, "keys width+2"],
    offset: Float[Tensor, " queries"],
    scale: float,
    groups: int,
    block: _Block,
) -> Float[Tensor, " queries"]:
    _multiply(_with_subtrahend(queries, offset), keys, scale, scores)
    _hide(scores, groups, block)
    return scores.exp_().sum(-1, dtype=torch.float32)


def _multiply(
    left: Float[Tensor, "rows width"],
    right: Float[Tensor, "columns width"],
    scale: float,
    out: Float[Tensor, "rows columns"],
) -> None:
    """Scale * left right^T into `out`, scaled before it is rounded."""
    torch.addmm(out, left, right.t(), beta=0, alpha=scale, out=out)


def _score_buffer(like: Tensor, groups: int, blocks: tuple[_Block, ...]) -> Tensor:
    largest = max((block.last - block.first) * block.num_keys for block in blocks)
    return like.new_empty(groups * largest)


def _matrix(buffer: Tensor, groups: int, block: _Block) -> Float[Tensor, "queries keys"]:
    num_queries = groups * (block.last - block.first)
    return buffer[: num_queries * block.num_keys].view(num_queries, block.num_keys)


def _hide(scores: Float[Tensor, "queries keys"], groups: int, block: _Block) -> None:
    tail = scores.view(groups, -1, block.num_keys)[:, :, -block.hidden.shape[1] :]
    tail.masked_fill_(block.hidden, float("-inf"))


def _with_subtrahend(
    rows: Float[Tensor, "*batch width"], subtrahend: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch width+2"]:
    """Rows whose product with columns that end in (1, 1) has `subtrahend` taken away.

    Two columns, since one number of the low precision would not hold it: the second has what the
    first has lost.
    """
    high = subtrahend.to(rows.dtype)
    low = (subtrahend - high.float()).to(rows.dtype)
    return torch.cat([rows, -high[..., None], -low[..., None]], dim=-1)


def _attend_by_kernel(
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens width"],
    scale: float,
    spans: tuple[Span, ...],
) -> Float[Tensor, "1 tokens heads width"]:
    parts = []
    for span in spans:
        start, stop = span.prompt
        prompt_key, prompt_value = key[:, :, start:stop], value[:, :, start:stop]
        parts.append(_attend(query[:, :, start:stop], prompt_key, prompt_value, scale))
        for first, last in span.responses:
            parts.append(
                _attend(
                    query[:, :, first:last],
                    torch.cat([prompt_key, key[:, :, first:last]], dim=2),
                    torch.cat([prompt_value, value[:, :, first:last]], dim=2),
                    scale,
                )
            )
        for branch in span.branches:
            places = [slice(*part) for part in (span.prompt, branch.before, branch.tokens)]
            parts.append(
                _attend(
                    query[:, :, slice(*branch.tokens)],
                    torch.cat([key[:, :, place] for place in places], dim=2),
                    torch.cat([value[:, :, place] for place in places], dim=2),
                    scale,
                    each_alone=True,
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _attend(
    query: Float[Tensor, "1 heads queries width"],
    key: Float[Tensor, "1 kv_heads keys width"],
    value: Float[Tensor, "1 kv_heads keys width"],
    scale: float,
    each_alone: bool = False,
) -> Float[Tensor, "1 heads queries width"]:
    """The queries' own keys are the last ones, seen causally, or `each_alone` its own only."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if each_alone:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask[:, keys - queries :] = torch.eye(queries, dtype=torch.bool, device=query.device)
    elif keys > queries:  # sdpa's own causal mask is aligned to the top left, ours to the end
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
