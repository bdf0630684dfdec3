"""The computation graph and the ways to make one."""

from bounds.graph.graph import FoldError, Graph, InvalidNetwork, Node, UnsupportedOperator

__all__ = ["FoldError", "Graph", "InvalidNetwork", "Node", "UnsupportedOperator"]
