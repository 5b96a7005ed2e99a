"""Expert-guided tree search and rollouts: pure algorithms and the Ray actors that run them."""
