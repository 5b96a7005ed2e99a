"""What a language model is shown and what it writes: prompts, formats, trajectories."""
