"""Open a specification (plain or gzip, 1.0 or 2.0), parse it and make the property."""

from __future__ import annotations

import re
from pathlib import Path

from bounds.files import DamagedFile, read_bytes, trouble
from verifier.limits import MAX_VARIABLES
from verifier.property import Property
from verifier.vnnlib.errors import VnnlibError
from verifier.vnnlib.formula import to_property
from verifier.vnnlib.version1 import parse_version1

# 2.0 files open with these statements; in 1.0 neither exists.
_VERSION2 = re.compile(r"^[^\S\n]*\(\s*(?:vnnlib-version|declare-network)\b", re.MULTILINE)


def read_vnnlib(source: str | Path | bytes, *, inputs: int | None = None, outputs: int | None = None) -> Property:
    """The unsafe set that a VNN-LIB file describes.

    source: a path (where it is absent, `PATH.gz` is tried), or the file's bytes; gzip is recognised
    by content. inputs, outputs: the network's flat sizes, which the declarations must match.
    Raises VnnlibError (file, line, reason) for anything that is not understood completely.
    """
    name = "specification" if isinstance(source, bytes) else str(source)
    try:
        data = read_bytes(source)
    except DamagedFile as error:
        raise VnnlibError(name, 0, str(error)) from None
    except OSError as error:
        raise VnnlibError(name, 0, trouble(error)) from error
    try:
        text = data.decode("utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise VnnlibError(name, line, "not a text file: expected a VNN-LIB specification") from None
    if _VERSION2.search(text):
        from verifier.vnnlib.version2 import parse_version2
        specification = parse_version2(text, name)
    else:
        specification = parse_version1(text, name)
    for what, letter, declared, expected in (("inputs", "X", specification.inputs, inputs),
                                             ("outputs", "Y", specification.outputs, outputs)):
        if expected is not None and declared != expected:
            raise VnnlibError(name, 0, f"declares {declared} {what} {letter}_i, but the network has {expected}")
        if not 1 <= declared <= MAX_VARIABLES:
            raise VnnlibError(name, 0, f"declares {declared} {what}, expected 1 to {MAX_VARIABLES}")
    return to_property(specification)
