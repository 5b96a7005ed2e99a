"""The search stage, and what a person sees of it."""
