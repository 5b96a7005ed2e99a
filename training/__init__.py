"""Training on Ray Train, evaluation, the stages of a run and the command line."""
