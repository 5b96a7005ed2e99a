"""A run's settings, one file a section; needs neither torch nor Ray."""
