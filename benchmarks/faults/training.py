"""Faults of training and of what a network is said to be worth: losses, inner attacks, schedules, the loop, shares."""

from __future__ import annotations

from benchmarks.faults.fault import Fault

CASCADES = ("tests/certify/test_cascade.py",)
CERTIFYING = ("tests/certify/evaluation/test_cascade.py",)
EVALUATING = ("tests/certify/evaluation/test_evaluate.py", "tests/certify/evaluation/test_command.py")
LOOP = ("tests/certify/test_trainer.py",)
RUNS = ("tests/certify/test_train_command.py",)
SMOOTHED = ("tests/certify/test_smoothing.py",)
STATISTICS = ("tests/certify/test_statistics.py", "tests/certify/losses/test_ibp.py")
AVERAGES = ("tests/certify/test_averaging.py",)
MINIBATCHES = ("tests/certify/data/test_batches.py",)
MODELS = ("tests/certify/models/test_models.py",)


def _loss(name: str) -> tuple[str, ...]:
    return (f"tests/certify/losses/test_{name}.py",)


def _method(name: str) -> tuple[str, ...]:
    return (f"tests/certify/adversarial/test_{name}.py",)


FAULTS = (
    # what is said of a network
    Fault("one-margin-certifies", "certify/cascade.py", "unsound",
          "a stage's prediction counts as proved where one other class is excluded",
          "lower.view(len(rest), classes - 1) > 0).all(1)", "lower.view(len(rest), classes - 1) > 0).any(1)", CASCADES),
    Fault("stage-answers-unproved", "certify/cascade.py", "unsound", "the first stage answers whatever it proves",
          "stage[rest[proved]] = k", "stage[rest] = k", CASCADES),
    Fault("right-or-proved", "certify/cascade.py", "unsound", "a proved prediction counts, right or wrong",
          "return (self.stage >= 0) & (self.prediction == self.label)", "return self.stage >= 0", CASCADES),
    Fault("closed-pair-closes-all", "certify/evaluation/cascade.py", "unsound",
          "an example counts as certified once one class is excluded",
          "if not self.standings[i].open:", "if len(self.standings[i].open) < self.cascade.classes - 1:", CERTIFYING),
    Fault("step-without-evidence", "certify/evaluation/cascade.py", "rounding",
          "a step that does not account for rounding counts as rounded",
          "self.standings[i].closed(j, margin, rounded)", "self.standings[i].closed(j, margin, True)",
          CERTIFYING + EVALUATING),
    Fault("branches-of-other-classes", "certify/evaluation/cascade.py", "unsound",
          "the search is asked about the classes that are closed already",
          "strict=True) if j in standing.open)", "strict=True) if j not in standing.open[:1])", CERTIFYING),
    Fault("clash-is-trusted", "certify/evaluation/cascade.py", "unsound",
          "a step's bounds count although a sampled point contradicts them",
          "if clash or self.state.numerical:", "if self.state.numerical:", CERTIFYING),
    Fault("share-without-confidence", "certify/smoothing.py", "unsound",
          "the share of the top class is taken as seen, not as a lower confidence bound",
          "np.where(count > 0, stats.beta.ppf(alpha, np.maximum(count, 1), samples - count + 1), 0.0)",
          "count / samples", SMOOTHED),
    Fault("looks-share-no-alpha", "certify/smoothing.py", "unsound", "every look spends the whole of alpha",
          "part = alpha / len(looks)", "part = alpha", SMOOTHED),
    # losses
    Fault("margins-of-the-label", "certify/margins.py", "training", "worst logits have the wrong sign",
          "return -margins", "return margins", _loss("ibp")),
    Fault("natural-weight-swapped", "certify/losses/ibp.py", "training", "the two losses change their weights",
          "step.natural * natural + (1 - step.natural) * robust",
          "(1 - step.natural) * natural + step.natural * robust", _loss("ibp")),
    Fault("set-of-target-radius", "certify/terms.py", "training", "bounds ignore the schedule of the radius",
          "room = self.room(eps)\n            return Box(room.lower, room.upper)",
          "room = self.room(self.target_eps)\n            return Box(room.lower, room.upper)", _loss("ibp") + LOOP),
    Fault("chord-of-the-lower-end", "certify/losses/crown_ibp.py", "training",
          "the fused loss's chords meet the exponential at the wrong end",
          "total = linear + (top - slope * upper).sum(1)",
          "total = linear + (top - slope * low).sum(1)", _loss("crown_ibp")),
    Fault("beta-reversed", "certify/losses/crown_ibp.py", "training", "CROWN-IBP's weight grows in place of falling",
          "return self.beta_start + (self.beta_end - self.beta_start) * share",
          "return self.beta_end + (self.beta_start - self.beta_end) * share", _loss("crown_ibp")),
    Fault("small-box-leaves-the-set", "certify/losses/sabr.py", "training", "small boxes reach beyond the whole set",
          "centre = torch.minimum(torch.maximum(x, room.lower + half), room.upper - half)\n"
          "    return Box(torch.maximum(centre - half, room.lower), torch.minimum(centre + half, room.upper))",
          "return Box(x - half, x + half)", _loss("sabr")),
    Fault("small-box-certifies", "certify/losses/sabr.py", "unsound", "the log calls certified what a small box gave",
          "return self.shrink == 1 and self.relu_shrinkage == 1", "return True", _loss("sabr")),
    Fault("expression-swapped", "certify/losses/expressive.py", "training", "MTL-IBP's coefficient is the attack's",
          "(1 - self.coefficient) * losses(attacked, y) + self.coefficient * losses(bounded, y)",
          "self.coefficient * losses(attacked, y) + (1 - self.coefficient) * losses(bounded, y)", _loss("expressive")),
    Fault("exp-of-margins", "certify/losses/expressive.py", "training", "Exp-IBP's exponents do not add up to one",
          "return low ** (1 - self.coefficient) * high**self.coefficient",
          "return low ** (1 - self.coefficient) * high ** (2 * self.coefficient)", _loss("expressive")),
    Fault("dual-unbounded-input", "certify/losses/wong_kolter.py", "training",
          "the dual bound forgets the range of inputs", "step if self.bounded else replace(step, clip=None)",
          "replace(step, clip=None)", _loss("wong_kolter")),
    Fault("median-of-generators", "certify/projections.py", "training",
          "Cauchy estimates take the mean of an even number's upper half", "high if count % 2 else",
          "high if count else", _loss("wong_kolter")),
    Fault("zonotope-spread-halved", "certify/losses/zonotope.py", "training", "margins of zonotopes are too good",
          "(middle - spread).flatten()", "(middle - spread / 2).flatten()", _loss("zonotope")),
    Fault("connector-to-one-end", "certify/losses/taps.py", "training", "gradients reach one end of the box alone",
          "to_upper * (upper - upper.detach()) + to_lower * (lower - lower.detach())",
          "to_upper * (upper - upper.detach())", _loss("taps")),
    Fault("lipschitz-without-root", "certify/losses/lipschitz_margin.py", "training",
          "a difference of logits counts as one logit", "math.sqrt(2.0) * self.scale", "self.scale",
          _loss("lipschitz_margin")),
    # inner attacks
    Fault("stops-while-far", "certify/adversarial/dynamic.py", "training",
          "the indicator of the printed algorithm: what is converged moves on, the rest stops",
          "stationarity_gap(slope, here, room, going) > enough", "stationarity_gap(slope, here, room, going) <= enough",
          _method("dynamic")),
    Fault("threshold-never-zero", "certify/adversarial/dynamic.py", "training", "the last epochs are content too early",
          "t, end = int(progress.epoch), self.control * progress.epochs",
          "t, end = int(progress.epoch), 2 * progress.epochs", _method("dynamic")),
    Fault("lesson-for-all", "certify/adversarial/curriculum.py", "training", "easier attacks are not mixed in",
          "going = (steps > k).nonzero().flatten()", "going = (steps >= 0).nonzero().flatten()", _method("growing")),
    Fault("divergence-reversed", "certify/adversarial/trades.py", "training", "KL from the other side",
          "return (log_p.exp() * (log_p - log_q)).sum(1)", "return (log_q.exp() * (log_q - log_p)).sum(1)",
          _method("divergence")),
    Fault("boost-of-the-label", "certify/adversarial/mart.py", "training",
          "the boosted loss looks for the likeliest class, the label among them",
          "logits.scatter(1, y.unsqueeze(1), -float(\"inf\")).argmax(1)", "logits.argmax(1)", _method("divergence")),
    Fault("free-forgets", "certify/adversarial/free.py", "training", "the perturbation begins anew in every replay",
          "kept = step.memory.get(\"delta\", step.x[:0])", "kept = step.x[:0]", _method("free")),
    Fault("yopo-moves-by-the-network", "certify/adversarial/yopo.py", "training",
          "the slack variable belongs to the wrong layer", "(p * self(x)).sum()", "self(x).sum()", _method("yopo")),
    Fault("guard-never-looks", "certify/adversarial/single_step.py", "training", "a collapse goes unnoticed",
          "if several >= self.guard * single or single - several < LEAST_GAP:", "if several >= 0:",
          _method("single_step")),
    # the loop
    Fault("average-of-everything", "certify/averaging.py", "training", "weights are averaged from the first epoch",
          "if epoch >= self.start:", "if epoch >= 0:", AVERAGES),
    Fault("statistics-of-the-batch", "certify/statistics.py", "training",
          "precise statistics are a moving average of the last batches", "norm.momentum = None  #",
          "norm.momentum = 0.1  #", STATISTICS),
    Fault("statistics-move-backwards", "certify/classifier.py", "training",
          "running statistics keep the biased variance", "op.variance * (count / max(1, count - 1))", "op.variance",
          MODELS + STATISTICS),
    Fault("resumed-in-the-epoch-before", "certify/trainer.py", "training", "a resumed epoch begins at its first batch",
          "self.batches.epoch(self.epoch, skip=self.batch)", "self.batches.epoch(self.epoch)", LOOP),
    Fault("memory-not-restored", "certify/trainer.py", "training", "what a method kept is lost when a run goes on",
          "self.memory.update(state[\"memory\"])", "pass", LOOP + _method("methods")),
    Fault("validated-on-training-data", "certify/trainer.py", "training", "examples held out are trained on as well",
          "return examples.take(~chosen), examples.take(chosen)", "return examples, examples.take(chosen)", LOOP),
    Fault("kept-before-the-ramp-ends", "certify/trainer.py", "training", "an epoch of a smaller radius may be kept",
          "if score is not None and late and", "if score is not None and", LOOP),
    Fault("same-order-each-epoch", "certify/data/batches.py", "training", "every epoch has the order of the first",
          "np.random.default_rng((self.seed, epoch))", "np.random.default_rng((self.seed, 0))", MINIBATCHES),
    Fault("card-of-training-examples", "certify/training.py", "training", "the card speaks of examples trained on",
          "test = data.test\n", "test = data.train\n", RUNS),
)
