"""Which tokens can still change which part of the reward: credit within a trajectory, beside Eq. 14.

Not in the paper, which gives every token the advantage of the whole R. Once the features are named
R_att is settled: for the tokens behind them it is chance, as large as the group's spread of it, and
`grpo.credit: reward_to_go` leaves it out there, which takes noise from the gradient and no signal.
R and R_cls are normalized each by its own deviation, so that the tokens behind the names are
trained as by GRPO on R_cls alone, whatever lambda is. Source: reward-to-go of REINFORCE, e.g.
Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation".
"""

from collections.abc import Sequence

from ehr.pieces import TextTokenizer
from ehr.trajectory import parse_trajectory
from training.objective.entropy import token_spans


def features_are_named(token_ids: Sequence[int], tokenizer: TextTokenizer) -> list[bool]:
    """Which tokens of a response stand behind its features block.

    Args:
        token_ids: the response as it was sampled.
        tokenizer: decodes it.

    Returns:
        False for every token of an answer without such a block. A token with a character of the
        block's contents is not behind it.
    """
    text, spans = token_spans(token_ids, tokenizer)
    block = parse_trajectory(text).features_span
    return [block is not None and start >= block[1] for start, _ in spans]
