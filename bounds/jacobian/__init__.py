"""Enclosures of a network's gradients over input sets, one file a method."""
