"""The blind comparison: a page that asks which of two pictures is better and does not say whose they are."""
