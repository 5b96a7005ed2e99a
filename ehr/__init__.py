"""The clinical domain: cohorts, features, prompts, rewards, experts and metrics in plain Python."""
