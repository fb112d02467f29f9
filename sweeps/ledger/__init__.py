"""What is on disk: the run folder, the records of its trials, its copy elsewhere, and what makes two runs the same."""
