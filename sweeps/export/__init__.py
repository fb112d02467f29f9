"""A run's best checkpoint as files that people load."""
