"""A study of nothing, whose numbers are its settings: what the frame's tests run."""

from __future__ import annotations

from benchmarks.studies.claims import plain, verdict
from benchmarks.studies.study import Context, Drawing, Numbers, Settings, Study, Verdict, run


def measure(settings: Settings, context: Context) -> Numbers:
    context.tell("measuring")
    return {"values": [settings["slope"] * seed for seed in settings["seeds"]], "names": {1: "one"}}


def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    from verifier.panels import new_figure
    figure = new_figure(2, 2)
    figure.subplots().plot(settings["seeds"] + [9], numbers["values"] + [0.0])
    return {"line": Drawing(figure, f"A line through {numbers['names']['1']} point and more.")}


def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    values = numbers["values"]
    return [verdict("Values grow", "Figure 1", [plain(values[-1] > values[0])], f"From {values[0]} to {values[-1]}.")]


def table(numbers: Numbers, settings: Settings) -> str:
    return "| values |\n| ---: |\n" + "\n".join(f"| {value:g} |" for value in numbers["values"])


MODES = {mode: {"seeds": (1, 2, 3), "slope": slope, "data": "digits", "most": None}
         for mode, slope in (("quick", 0.5), ("default", 1.0), ("paper", -1.0))}
STUDY = Study("toy", "A toy", "a source", MODES, measure, draw, judge, table)

if __name__ == "__main__":
    raise SystemExit(run(STUDY))
