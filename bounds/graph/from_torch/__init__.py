"""PyTorch modules as graphs.

`tracer` walks the nodes that `torch.fx` records; each `rows_*` file is a table from modules, functions and methods to
small functions with PyTorch's own signatures. What has no row is refused with its module path.
"""

from bounds.graph.from_torch.tracer import trace_module

__all__ = ["trace_module"]
