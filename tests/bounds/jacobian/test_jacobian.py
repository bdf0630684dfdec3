"""Enclosures of gradients against autograd at points, exact enumeration of linear pieces, and exact rationals."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.compute import compute_bounds
from bounds.graph import FoldError, Graph, UnsupportedOperator
from bounds.interval import Interval
from bounds.jacobian import linear, recurjac
from bounds.jacobian.compute import METHODS, jacobian_bounds
from bounds.jacobian.enclosure import sup_norm, vector_norm_up
from bounds.jacobian.functionals import UpperLine
from bounds.jacobian.linear import bound_with_norm
from bounds.jacobian.operator_norm import operator_norm_up
from bounds.ops.affine_kinds import every_affine_kind  # placeholder
