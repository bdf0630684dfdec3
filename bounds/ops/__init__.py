"""One file an operator: what it computes, what it encloses, how rows are pulled back through it."""
