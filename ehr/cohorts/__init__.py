"""Cohorts: where patients come from, how they are checked, and what is known about them."""
