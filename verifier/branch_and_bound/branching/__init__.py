"""Branching rules, each a file: where a domain is split next."""
