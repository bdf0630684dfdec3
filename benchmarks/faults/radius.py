"""Faults of safe radii and of Lipschitz constants: balls, both ends, what a tree keeps, gradients, norms, ranges."""

from __future__ import annotations

from benchmarks.faults.fault import Fault

BALLS = ("tests/verifier/radius/test_balls.py",)
LOWER = ("tests/verifier/radius/test_lower.py",)
UPPER = ("tests/verifier/radius/test_upper.py",)
ENDS = ("tests/verifier/radius/test_search.py",)
COUNTS = ("tests/verifier/radius/test_subsets.py",)
PROGRAMMES = ("tests/verifier/radius/test_programmes.py",)
SCORES = ("tests/verifier/radius/test_clever.py",)
COMMAND = ("tests/verifier/test_radius_command.py",)
LEAVES = ("tests/verifier/branch_and_bound/test_leaves.py",)
LOCAL = ("tests/verifier/lipschitz/test_local.py",)
CERTIFIED = ("tests/verifier/lipschitz/test_radius.py",)
RANGES = ("tests/verifier/lipschitz/test_range.py",)
NORMS = ("tests/verifier/lipschitz/test_operator_norms.py",)
STORED = ("tests/verifier/lipschitz/test_storage.py",)
EXACT = ("tests/verifier/lipschitz/test_exact.py",)
JACOBIANS = ("tests/bounds/jacobian/test_jacobian.py",)
LENGTHS = ("tests/bounds/jacobian/test_norms.py",)

FAULTS = (
    # balls and intervals
    Fault("ball-not-outward", "verifier/radius/balls.py", "rounding", "a ball ends at the float that its radius is",
          "above = torch.nextafter(radius.double(), torch.full_like(radius, math.inf, dtype=torch.float64))",
          "above = radius.double()", BALLS),
    Fault("largest-ball-of-one-side", "verifier/radius/balls.py", "unsound",
          "the whole range is taken to be held by a ball that reaches its lower end",
          "away = torch.maximum((self.x - round_down(low)).abs(), (round_up(high) - self.x).abs())",
          "away = (self.x - round_down(low)).abs()", BALLS),
    Fault("distance-rounded-down", "verifier/radius/balls.py", "rounding", "a witness's distance is not rounded up",
          "length * (1 + (moved.shape[1] + 4) * 2.0**-52)", "length * (1 - (moved.shape[1] + 4) * 2.0**-52)", BALLS),
    Fault("clash-keeps-the-weaker", "verifier/radius/interval.py", "unsound",
          "of ends that clash the weaker one stays",
          "return new > old", "return new < old", ENDS),
    Fault("gap-of-nothing", "verifier/radius/interval.py", "witness", "an open radius has no gap",
          "0.0 if self.lower == self.upper else self.upper - self.lower",
          "0.0 if self.lower == self.upper or self.witness is None else self.upper - self.lower", ENDS + COMMAND),
    # lower and upper ends
    Fault("one-row-proves", "verifier/radius/lower.py", "unsound", "a radius counts where one other class is excluded",
          "proved = (value > 0).all(1)", "proved = (value > 0).any(1)", LOWER),
    Fault("rows-left-after-failure", "verifier/radius/lower.py", "unsound",
          "rows that fail at a radius are not asked again below it", "self.rows[f] &= ~(at[~proved] > 0)",
          "self.rows[f] &= at[~proved] > 0", LOWER),
    Fault("unconfirmed-radius", "verifier/radius/lower.py", "rounding", "float64 need not confirm what float32 found",
          "confirmed[i[held]], waiting[i[held]] = True, False", "confirmed[i], waiting[i] = True, False", LOWER),
    Fault("witness-of-the-box", "verifier/radius/upper.py", "witness", "float32 points may leave the clip range",
          "single = single.maximum(self.low32[k]).minimum(self.high32[k])\n"
          "        inside = ((single >= self.low32[k]) & (single <= self.high32[k])).flatten(1).all(1)",
          "inside = torch.ones(len(single), dtype=torch.bool)", UPPER),
    Fault("witness-against-the-reals", "verifier/radius/upper.py", "witness",
          "a witness counts that an enclosure over the reals refutes",
          "if witness is not None and witness.real_agrees is not False:", "if witness is not None:", UPPER),
    Fault("class-out-of-reach", "verifier/radius/programmes.py", "unsound",
          "a class is left out that the programme does not exclude", "if least.answer.bound > 0 and",
          "if least.answer.bound > -9e9 and", PROGRAMMES),
    # l_0, estimates, the command
    Fault("one-feature-too-many", "verifier/radius/subsets.py", "unsound", "the lower end counts what was not proved",
          "lower = t if t <= free else math.inf", "lower = t + 1 if t <= free else math.inf", COUNTS),
    Fault("split-loses-a-half", "verifier/radius/subsets.py", "unsound",
          "the last feature to move is looked for in the half of larger gains alone",
          "torch.where(last, nodes.fixed | (rest & ~large), nodes.fixed), nodes.asked)\n"
          "        out = torch.where(last, large,",
          "torch.where(last, nodes.fixed | (rest & ~large), nodes.fixed), nodes.asked)\n"
          "        out = torch.where(last, rest,",
          COUNTS),
    Fault("bisection-loses-points", "verifier/radius/subsets.py", "unsound", "a box is not halved but cut off",
          "return _Nodes.joined([below, above])", "return _Nodes.joined([below, below])", COUNTS),
    Fault("l1-ball-too-small", "verifier/radius/subsets.py", "unsound",
          "features are measured by the nearer end of their range",
          "scale = torch.maximum(upper - self.x, self.x - lower)",
          "scale = torch.minimum(upper - self.x, self.x - lower)", COUNTS),
    Fault("estimate-of-fixed-features", "verifier/radius/clever.py", "looser", "gradients of fixed features count",
          "(gradient * free).flatten(1)", "gradient.flatten(1)", SCORES),
    Fault("estimate-called-proved", "verifier/radius/data.py", "unsound", "CLEVER's score becomes the lower end",
          "if METHODS[asked.method].kind == ESTIMATE:\n        record |= _as_fields(estimate)",
          "if METHODS[asked.method].kind == ESTIMATE:\n        record |= _as_fields(estimate)\n"
          "        record[\"r1\"] = record[\"estimate\"]", COMMAND),
    Fault("counts-within-a-tolerance", "verifier/radius/data.py", "unsound",
          "numbers of features that differ are exact", "found.gap <= (0 if counts else asked.tolerance)",
          "found.gap <= asked.tolerance", COMMAND),
    Fault("radius-of-another-norm", "verifier/cli/radius.py", "witness", "a run goes on in another norm",
          "\"norm\": str(asked.norm), ", "", COMMAND),
    Fault("table-of-the-last", "verifier/cli/data_run.py", "witness", "the table has the last record only",
          "table.writerows(records)", "table.writerows(records[-1:])", COMMAND),
    # what a tree keeps
    Fault("refused-noted-closed", "verifier/branch_and_bound/leaves.py", "unsound",
          "what nothing decides counts as closed at other radii",
          "len(domains) > 0\n        self._note(domains, question, -math.inf)",
          "len(domains) > 0\n        self._note(domains, question, self.radius)", LEAVES),
    Fault("closed-at-any-radius", "verifier/branch_and_bound/leaves.py", "unsound",
          "a leaf that was closed in a smaller ball is not asked again in a larger one",
          "chosen = torch.isin(leaf.branch, branch) & ~(leaf.closed_at >= self.radius)",
          "chosen = torch.isin(leaf.branch, branch) & ~(leaf.closed_at > -math.inf)", LEAVES),
    Fault("paused-elsewhere", "verifier/branch_and_bound/leaves.py", "unsound",
          "a search over a larger ball goes on with the bounds of a smaller one",
          "paused.radius == self.radius and not len(new)", "not len(new)", LEAVES),
    Fault("branch-closed-by-one-leaf", "verifier/branch_and_bound/leaves.py", "unsound",
          "a branch is closed though some of its leaves are not",
          "out[leaf.branch[~(leaf.closed_at >= self.radius)]] = False",
          "out[leaf.branch[~(leaf.closed_at > -math.inf)]] = False", LEAVES),
    Fault("closed-leaves-dropped", "verifier/branch_and_bound/leaves.py", "unsound",
          "leaves that were not asked are forgotten, those beside them stay",
          "for leaf in (*self._rest, *self._new) if len(leaf)]", "for leaf in self._new if len(leaf)]", LEAVES),
    Fault("split-sides-mirrored", "verifier/branch_and_bound/leaves.py", "unsound",
          "half of the leaves begin on the other side of their splits", "sides, cuts = leaf.sides.to(to.device), ",
          "sides, cuts = leaf.sides.abs().to(to.device), ", LEAVES),
    # local constants
    Fault("primal-norm", "verifier/lipschitz/local.py", "unsound", "gradients are measured in the norm of distances",
          "q = dual(norm)\n    if", "q = norm\n    if", LOCAL),
    Fault("radius-beyond-the-ball", "verifier/lipschitz/radius.py", "unsound",
          "a constant of a small ball proves a radius beyond it", "torch.maximum(low, torch.minimum(R, quotient))",
          "torch.maximum(low, quotient)", CERTIFIED),
    Fault("quotient-rounded-up", "verifier/lipschitz/radius.py", "rounding",
          "quotients of margins are not rounded down",
          "DOWN = 1 - 2.0**-50", "DOWN = 1 + 2.0**-50", CERTIFIED),
    Fault("kinks-known", "bounds/jacobian/interval.py", "unsound", "the radius of gradients is lost behind weights",
          "reaches = op.absolute().pull_back(radius, shapes)", "reaches = op.pull_back(radius, shapes)", JACOBIANS),
    Fault("sum-of-branches-once", "bounds/jacobian/interval.py", "unsound",
          "of a node that is read twice one gradient counts",
          "found[j] = part if j not in found else _sum(found[j], part, question.rounded)", "found[j] = part",
          JACOBIANS),
    Fault("chord-below-the-corner", "bounds/jacobian/linear.py", "unsound", "the line above a product ends too low",
          "torch.maximum((s.upper - chord) * g.upper, (s.lower - chord) * g.lower)",
          "torch.minimum((s.upper - chord) * g.upper, torch.zeros_like(chord))", JACOBIANS),
    Fault("squares-without-levels", "bounds/jacobian/linear.py", "unsound", "chords of squares pass the origin",
          "return g.lower + g.upper, -g.lower * g.upper", "return g.lower + g.upper, 0 * g.upper", LOCAL),
    Fault("recursion-flat", "bounds/jacobian/recurjac.py", "unsound", "a product of unknown sign is at most zero",
          "torch.where(through_origin, zero, level)", "torch.where(through_origin, zero, zero)", JACOBIANS),
    Fault("coefficients-for-nothing", "bounds/jacobian/functionals.py", "rounding",
          "coefficients pass affine operators for nothing", "extra = extra + _dot(L.abs(), price[row])",
          "extra = extra + 0 * _dot(L.abs(), price[row])", JACOBIANS),
    Fault("power-method-from-below", "bounds/jacobian/operator_norm.py", "unsound",
          "the least quotient of the power method is taken, which lies below the norm",
          "best = torch.minimum(best, (w / v).amax(1))", "best = torch.minimum(best, (w / v).amin(1))", LENGTHS),
    # whole networks and ranges
    Fault("pool-counts-once", "verifier/lipschitz/operator_norms.py", "unsound",
          "inputs of overlapping windows count once", "value * (1.0 if r == math.inf else times ** (1 / r) * UP)",
          "value * (1.0 if r == math.inf else UP)", NORMS),
    Fault("sum-takes-the-largest", "verifier/lipschitz/operator_norms.py", "unsound",
          "branches of a sum do not add up", "q: sum(values) * (1 + 4", "q: max(values) * (1 + 4", NORMS),
    Fault("gram-entries-exact", "verifier/lipschitz/operator_norms.py", "rounding",
          "the radius of a matrix is forgotten",
          "matrix, radius = map.matrix / unit, map.radius / unit", "matrix, radius = map.matrix / unit, map.radius * 0",
          NORMS),
    Fault("steep-slopes-lost", "verifier/lipschitz/storage.py", "unsound", "slopes above one count as one",
          "W, R = W * steepest, R * steepest * UP", "R = R * steepest * UP", STORED),
    Fault("unproved-layer", "verifier/lipschitz/storage.py", "unsound", "a layer's inequality is not proved",
          "return form if is_positive_definite(block, error) else None", "return form", STORED),
    Fault("undecided-slope-one", "verifier/lipschitz/exact.py", "unsound", "undecided neurons are taken to be active",
          "return (np.where(sign > 0, 1.0, np.where(sign < 0, left, low)),",
          "return (np.where(sign >= 0, 1.0, np.where(sign < 0, left, low)),", EXACT),
    Fault("solver-prunes", "verifier/lipschitz/exact.py", "unsound", "the solver's value prunes a part",
          "if safe_bounds(problem, answer.dual)[0] > 0:",
          "if answer.point[0, n] < 0 or safe_bounds(problem, answer.dual)[0] > 0:", EXACT),
    Fault("left-boxes-forgotten", "verifier/lipschitz/range.py", "unsound",
          "boxes that were closed do not bound the range",
          "self.floor = min(self.floor, float(self.lower[~keep].min()))", "self.floor = min(self.floor, math.inf)",
          RANGES),
    Fault("half-the-reach", "verifier/lipschitz/range.py", "unsound", "a constant is multiplied with half the way",
          "change = (constants * reach).sum(1) * share", "change = (constants * reach).sum(1) * share / 2", RANGES),
)
