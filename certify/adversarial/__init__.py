"""Adversarial training: one file a method, each with its paper."""
