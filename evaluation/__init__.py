"""Checkpoints to pictures, pictures to scores, checkpoints to ControlNet renders. Knows no Ray."""
