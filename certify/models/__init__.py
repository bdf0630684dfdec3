"""Networks to train: one file a family, and one door, `build`."""
