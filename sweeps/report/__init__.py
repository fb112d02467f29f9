"""A run as a page to read: verdict, plots, pictures."""
