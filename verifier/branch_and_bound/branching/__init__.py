"""Branching rules, each a file: where a domain is split next."""

BRANCHING = ("realised-gap", "babsr", "kfsb")  # the first is the default
