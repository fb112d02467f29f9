"""Runs of other trainers as sweep files: their commands and config files, read; nothing of theirs is imported."""
