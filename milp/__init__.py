"""Exact optimisation of piecewise-linear networks: MILP, LP and SDP."""
