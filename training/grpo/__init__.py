"""Stage 2: rollouts, advantages, policy updates and the sync of each to the generators."""
