"""Data sets for training and evaluation: one file a format, and one door, `registry.load`."""
