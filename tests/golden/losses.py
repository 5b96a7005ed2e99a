"""Ten losses of a tiny learner: advantage, entropy, adaptive clip, loss and Adam together."""

import torch
from torch import nn

from tests.objective_cases import flat_policy_loss
from tests.typed import known
from training.objective.advantage import group_advantages
from training.objective.clip import min_max_clip_high
from training.objective.entropy import mean_salient_entropy
from training.objective.logprob import response_logprobs
from training.objective.loss import LossDenominators

NUM_GROUPS, GROUP_SIZE, NUM_TOKENS, VOCABULARY, WIDTH = 2, 4, 6, 13, 8


class TinyPolicy(nn.Module):
    """Predicts each token from the running mean of the embeddings before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies [sequences, tokens]; token 0 opens every sequence."""
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        counts = torch.arange(1, tokens.shape[1] + 1)[:, None]
        hidden = self.embedding(before).cumsum(1) / counts
        logp, entropy = response_logprobs(
            hidden.flatten(0, 1), self.head.weight, tokens.flatten(), chunk=7, with_entropy=True
        )
        return logp.view_as(tokens), known(entropy).view_as(tokens)


def tiny_learner_losses() -> list[dict[str, float]]:
    """Loss and clip counts of ten updates on one rollout batch."""
    torch.manual_seed(0)
    policy = TinyPolicy()
    num_sequences = NUM_GROUPS * GROUP_SIZE
    tokens = torch.randint(0, VOCABULARY, (num_sequences, NUM_TOKENS))
    mask = torch.rand(num_sequences, NUM_TOKENS) > 0.2
    salient = mask & (torch.rand(num_sequences, NUM_TOKENS) > 0.5)
    rewards = torch.randn(NUM_GROUPS, GROUP_SIZE, dtype=torch.float64)
    with torch.no_grad():
        old_logp, old_entropy = policy(tokens)
    advantage = torch.cat([group_advantages(reward) for reward in rewards])
    entropy, valid = mean_salient_entropy(old_entropy, salient)
    clip_high = torch.cat(
        [
            min_max_clip_high(e, v, 0.2, 0.4)
            for e, v in zip(entropy.split(GROUP_SIZE), valid.split(GROUP_SIZE), strict=True)
        ]
    )
    denominators = LossDenominators(num_sequences=num_sequences, num_tokens=int(mask.sum()))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    steps = []
    for _ in range(10):
        parts = flat_policy_loss(
            policy(tokens)[0], old_logp, advantage, mask, 0.2, clip_high, "sequence_mean",
            denominators, clip_high_min=0.2,
        )  # fmt: skip
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
        steps.append(
            {
                "loss": parts.loss.item(),
                "num_clipped_low": parts.num_clipped_low,
                "num_clipped_high": parts.num_clipped_high,
                "num_adaptive": parts.num_adaptive,
            }
        )
    return steps
