"""Faults of attacks over data sets: where points may go, what counts as success, what it cost, what is to stand."""

from __future__ import annotations

from benchmarks.faults.fault import Fault

ROOMS = ("tests/verifier/attacks/test_threat.py", "tests/verifier/attacks/test_conformance.py")
RUNS = ("tests/verifier/attacks/test_conformance.py",)
GAPS = ("tests/verifier/attacks/test_fosc.py",)
STANDS = ("tests/verifier/test_standing.py",)
COMMAND = ("tests/verifier/test_attack_command.py",)

FAULTS = (
    Fault("room-rounded-outwards", "verifier/attacks/threat.py", "attack", "a ball's lower ends are rounded outward",
          "round_up(add_rounded(wide, -ball, down=False).clamp(min=low), x.dtype)",
          "round_down(add_rounded(wide, -ball, down=True).clamp(min=low), x.dtype)", ROOMS),
    Fault("outside-by-an-ulp", "verifier/attacks/threat.py", "attack",
          "points that rounding left outside an l_1 or l_2 ball stay there",
          "out = self.distance(y, owner) > radius\n            if",
          "out = self.distance(y, owner) > 2 * radius\n            if", ROOMS),
    Fault("mask-forgotten", "verifier/attacks/threat.py", "attack", "pinned features may move",
          "lower, upper = torch.where(free, torch.minimum(lower, x), x), torch.where(free, torch.maximum(upper, x), x)",
          "lower, upper = torch.minimum(lower, x), torch.maximum(upper, x)", ROOMS),
    Fault("ties-succeed", "verifier/attacks/criterion.py", "attack", "a tie counts as another class",
          "return margin < -TIE * torch.finfo(y.dtype).eps * y.abs().amax(1)", "return margin <= 0",
          ("tests/verifier/attacks/test_criterion.py",)),
    Fault("farthest-kept", "verifier/attacks/run.py", "looser", "of several successes in a batch any is kept",
          "((key < self.key[owner]) & (key == best[owner]))", "(key < self.key[owner])", RUNS),
    Fault("one-query-more", "verifier/attacks/run.py", "attack", "the limit of queries is passed by one",
          "return rank < self.queries - self.forward_calls[owner]",
          "return rank <= self.queries - self.forward_calls[owner]", RUNS),
    Fault("last-points-shared", "verifier/attacks/run.py", "attack", "an attack's own points are written into",
          "self.last, self._last_is_theirs = self.last.clone(), False", "self._last_is_theirs = False", RUNS),
    Fault("not-finite-succeeds", "verifier/attacks/run.py", "attack", "outputs that are not finite may succeed",
          "met = met & finite", "met = met", ("tests/verifier/attacks/test_criterion.py",)),
    Fault("gap-of-the-wrong-end", "verifier/attacks/fosc.py", "attack",
          "FOSC is taken towards the wrong end of the box", "torch.where(slope > 0, upper - x, lower - x) * slope",
          "torch.where(slope < 0, upper - x, lower - x) * slope", GAPS),
    Fault("stands-though-unproved", "verifier/standing.py", "unsound", "one proved class is enough to stand",
          "return open_ == 0", "return open_ < (~(lower < -9e9)).sum()", STANDS),
    Fault("stands-nearly", "verifier/standing.py", "unsound", "bounds a little below zero prove",
          "(~(lower > 0)).long()", "(~(lower > -1)).long()", STANDS),
    Fault("streams-of-the-batch", "verifier/attacks/draws.py", "attack",
          "random numbers depend on the place in the batch",
          "self._key = _mixed((ids.long() + 1) * GOLDEN ^ keys)",
          "self._key = _mixed((torch.arange(len(ids), device=ids.device) + 1) * GOLDEN ^ keys)",
          ("tests/verifier/attacks/test_draws.py",)),
    Fault("success-unconfirmed", "verifier/attack_data.py", "attack", "successes count that onnxruntime does not see",
          "good = goal.met(y, tried, i, goal.margin(y, tried, i)) & torch.isfinite(y).all(1)",
          "good = torch.isfinite(y).all(1)", COMMAND),
    Fault("resumed-with-other-settings", "verifier/cli/attack.py", "attack", "a run goes on with another eps",
          '"eps": str(self.threat.eps)', '"eps": ""', COMMAND),
)
