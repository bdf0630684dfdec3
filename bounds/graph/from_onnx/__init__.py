"""ONNX networks as graphs.

`file` reads and checks the file, `importer` walks its nodes, `call` is one node as its row sees it, `constants`
evaluates what depends on no input; each `rows_*` file is a table from operator names to small functions.
An operator without a row is refused by name.
"""

from bounds.graph.from_onnx.importer import read_onnx

__all__ = ["read_onnx"]
