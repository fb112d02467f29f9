"""Which trial comes next: a list decided beforehand, or a study led by scores. The one room that knows Optuna."""
