"""The run's page: its figures, tables and search trees."""
