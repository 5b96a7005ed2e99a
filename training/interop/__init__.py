"""For other trainers: the reward as a callable, trajectories and prompts as JSON lines."""
