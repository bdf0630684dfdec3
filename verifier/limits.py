"""What a specification may ask for at most. A short text can nest, multiply out or divide without end; real ones lie
far below: the largest of the competitions expand to some ten thousand disjuncts."""

from __future__ import annotations

MAX_DEPTH = 200            # nesting; far above any written formula, far below the interpreter's limit
MAX_EXPONENT = 5000        # beyond it an exact rational would only cost memory
MAX_DIGITS = 4000          # of one numeral
MAX_BITS = 2**15           # of a rational that exact arithmetic makes; the largest numerals have half as many
MAX_VARIABLES = 2**24      # inputs, and outputs: as many as entries of the largest tensor that a network may have
MAX_BRANCHES = 100_000     # disjuncts after expansion; a nested formula can grow exponentially
MAX_COMPARISONS = 2**18    # of all disjuncts together
MAX_ENDS = 2**21           # ends of the intervals of all input regions
MAX_COEFFICIENTS = 2**25   # of all rows, zeros included
