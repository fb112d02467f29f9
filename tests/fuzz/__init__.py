"""Hostile and broken inputs by hypothesis; `python -m tests.fuzz.count --examples 2000` prints the table of docs."""
