"""Attacks: they propose points, and the base alone decides what was reached (`verifier.attacks.base`).

Over a data set see `verifier.attacks.registry`; of properties `verifier.attacks.falsifier`, whose finds
`verifier.witness.confirm` decides.
"""
