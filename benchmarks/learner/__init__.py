"""Forward and backward of a policy update, ours beside TRL: `python -m benchmarks.learner`."""
