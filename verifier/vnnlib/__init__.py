"""VNN-LIB specifications: read (1.0 by ourselves, the one-network linear part of 2.0) and written (1.0)."""

from verifier.vnnlib.errors import VnnlibError
from verifier.vnnlib.read import read_vnnlib
from verifier.vnnlib.write import write_vnnlib

__all__ = ["VnnlibError", "read_vnnlib", "write_vnnlib"]
