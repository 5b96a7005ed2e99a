"""Tree search beside the floor of its engine: `python -m benchmarks.search`."""
