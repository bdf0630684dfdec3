"""Commands that this package adds to `rmax` (entry points `rmax.commands`)."""
