"""Supervised fine-tuning: Stage 1 and the row of direct predictions."""
