"""An adapter merged into a base weight, in the type that an engine computes in.

float32 keeps the sum as it is. bfloat16 has 8 significant bits: the step between two neighbours is
larger than most of what a few updates add to a weight, and rounding to the nearest would put the
weight back where it was (SmolLM2 after 4 updates at 1e-4: two fifths of the change were served).
There each weight is rounded up or down at random, with probabilities that make its expected value
the exact one. A layer's output sums hundreds of weights, so the update is there and the rounding
errors cancel (docs/benchmarks/sync.md has the share of the change and what is left of the noise).
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from services.adapters import LoraPair

_DROPPED_BITS = 16
"""Of a float32's bits, those that bfloat16 does not have."""


def merged_weight(
    weight: Float[Tensor, "outputs inputs"],
    pair: LoraPair,
    scaling: float,
    dtype: torch.dtype,
    draw: str,
) -> Float[Tensor, "outputs inputs"]:
    """W + scaling * B A in the engine's type.

    Args:
        weight: W as the base model's file has it.
        pair: A and B.
        scaling: lora_alpha / rank.
        dtype: what the engine computes in, float32 or bfloat16.
        draw: names the random draw of a rounding, the same for every replica: which policy, and
            which weight.
    """
    # The learner's base is rounded to this type too, and its adapter is added to that.
    base = weight.to(dtype).float()
    exact = torch.addmm(base, pair.b.float(), pair.a.float(), alpha=scaling)
    return exact if dtype is torch.float32 else rounded_at_random(exact, draw)


def rounded_at_random(values: Float[Tensor, "*shape"], draw: str) -> Float[Tensor, "*shape"]:
    """bfloat16 values whose expectation over draws is `values`.

    Of a value between two neighbours of the type, the further one comes with the probability that
    the distance to the nearer one is of the step. Values that the type has come back as they are.

    Args:
        values: float32.
        draw: seeds the random bits; the same text gives the same values.

    Source: stochastic rounding, as in Gupta et al. 2015 (arXiv 1502.02551), section 3.
    """
    digest = hashlib.blake2b(draw.encode(), digest_size=16).digest()
    # The fastest of numpy's generators; the bits travel nowhere, so any good one will do.
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
    noise = generator.integers(0, 1 << _DROPPED_BITS, values.shape, dtype=np.uint16)
    # Sign and magnitude: adding to the bits moves away from 0, cutting them moves towards it.
    bits = values.contiguous().view(torch.int32) + torch.from_numpy(noise.astype(np.int32))
    return (bits & -(1 << _DROPPED_BITS)).view(torch.float32).to(torch.bfloat16)
