"""The computation graph and the ways to make one."""

from bounds.graph.graph import Graph, InvalidNetwork, Node, UnsupportedOperator

__all__ = ["Graph", "InvalidNetwork", "Node", "UnsupportedOperator"]
