"""A small model that reads records, trained from scratch: `eag-rl reader`."""
