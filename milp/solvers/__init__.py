"""One file a solver: `solve(problem, *, time_limit_s) -> Solutions`."""
