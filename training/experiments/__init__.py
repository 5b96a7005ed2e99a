"""Several ways to train with several seeds each, compared: `eag-rl learn`."""
