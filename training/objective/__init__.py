"""The GRPO objective of the paper as pure functions: advantage, entropy, clip, loss."""
