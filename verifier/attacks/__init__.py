"""Attacks: look for points in the unsafe set. They propose; `verifier.witness.confirm` decides."""

from verifier.attacks.base import Attack, Candidates, Outcome
from verifier.attacks.pgd import Pgd

__all__ = ["Attack", "Candidates", "Outcome", "Pgd"]
