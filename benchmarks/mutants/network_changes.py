"""Structure-aware changes of ONNX models: files that are whole and say something wrong, impossible or enormous."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx

from benchmarks.mutants import changed_files, changed_nodes, changed_tensors
from benchmarks.mutants.enormous import enormous
from benchmarks.mutants.pick import Unfit

Change = Callable[[onnx.ModelProto, random.Random], None]
OFTEN = (changed_nodes.attribute_value, changed_nodes.attribute_value, changed_nodes.attribute_added,
         changed_nodes.operator_renamed, changed_nodes.input_rewired)
CHANGES: tuple[Change, ...] = (*changed_tensors.CHANGES, *changed_nodes.CHANGES, *changed_files.CHANGES, enormous,
                               *OFTEN)
IN_EACH_OTHERS_WAY = (Unfit, ValueError, TypeError, KeyError, IndexError, OverflowError)


def changed(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the changed model); one change, now and then more."""
    model, names = onnx.load_from_string(data), []
    while not names or draw.random() < 0.2:
        change = draw.choice(CHANGES)
        try:
            change(model, draw)
        except IN_EACH_OTHERS_WAY:  # an earlier change left nothing to change, or something that cannot be read
            continue
        names.append(change.__name__)
    return "+".join(names), model.SerializeToString()
