"""How fast can outputs change, and which values can they take? Lipschitz constants and the search that needs them."""
