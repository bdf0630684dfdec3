"""What ONNX says about an operator: its attributes and how many inputs and outputs it has, by version.

A node that breaks its definition is refused by runtimes, or read by each in its own way.
"""

from __future__ import annotations

import onnx
from onnx import checker, defs

from bounds.graph.graph import InvalidNetwork, UnsupportedOperator

_OURS = ("", "ai.onnx")


class Definitions:
    """The definitions of one file's operators."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.context = checker.C.CheckerContext()
        self.context.ir_version = model.ir_version
        self.context.opset_imports = {"": opset}
        self.own = {(f.domain, f.name) for f in model.functions}

    def check(self, node: onnx.NodeProto) -> None:
        """Raises InvalidNetwork for a node that its operator's definition does not allow. Operators that ONNX does not
        know are left to the table of rows."""
        if (node.domain, node.op_type) in self.own:
            raise UnsupportedOperator("functions that the file defines itself are not supported; inline them")
        if node.domain not in _OURS or node.op_type == "Constant" or not defs.has(node.op_type):
            return  # the value of a Constant may be large, and checking copies it
        try:
            checker.check_node(node, self.context)
        except checker.ValidationError as error:
            raise InvalidNetwork(f"breaks the operator's definition: {str(error).splitlines()[0]}") from error
