"""Certified losses: one file a method, each with its paper."""
