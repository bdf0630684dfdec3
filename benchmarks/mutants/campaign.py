"""The mutants of a run, each made from the seed and its number alone."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.mutants import damage, network_changes, specification_changes
from benchmarks.mutants.mutant import Mutant
from benchmarks.mutants.sources import Source

NET, SPEC, INPUT, MASK, TABLE = "net.onnx", "spec.vnnlib", "input.npy", "mask.npy", "instances.csv"
DAMAGED_SHARE = 0.3  # the rest are changes that know the format
KINDS = ("onnx", "vnnlib", "bounds", "input", "sweep")


def mutants(kind: str, count: int, sources: Sequence[Source], *, seed: int, time_limit_s: float) -> Iterator[Mutant]:
    make = {"onnx": of_network, "vnnlib": of_specification, "bounds": of_bounds, "input": of_input,
            "sweep": of_table}[kind]
    for number in range(count):
        draw = random.Random(f"{seed} {kind} {number}")
        yield make(draw.choice(sources), draw, f"{time_limit_s:g}")


def of_network(source: Source, draw: random.Random, limit: str) -> Mutant:
    """A changed network with the property of the sound one."""
    way = damage.damaged if draw.random() < DAMAGED_SHARE else network_changes.changed
    change, data = way(source.network, draw)
    return Mutant("onnx", source.name, change, ("verify", NET, SPEC, "--time-limit", limit, "--json", "-"),
                  {NET: data, SPEC: source.spec})


def of_specification(source: Source, draw: random.Random, limit: str) -> Mutant:
    way = damage.damaged if draw.random() < DAMAGED_SHARE else specification_changes.changed
    change, data = way(source.spec, draw)
    return Mutant("vnnlib", source.name, change, ("verify", NET, SPEC, "--time-limit", limit, "--json", "-"),
                  {NET: source.network, SPEC: data})


def of_bounds(source: Source, draw: random.Random, limit: str) -> Mutant:
    """Either file changed, before `rmax bounds`."""
    other = (of_network if draw.random() < 0.5 else of_specification)(source, draw, limit)
    return Mutant("bounds", source.name, other.change, ("bounds", NET, SPEC, "--method", "ibp,crown", "--json", "-"),
                  other.files)


def of_input(source: Source, draw: random.Random, limit: str) -> Mutant:
    """A ball around an input: damaged arrays, wrong shapes and types, values that are no numbers, odd masks."""
    shape = _input_shape(source.network)
    x, mask = np.full(shape, 0.5, np.float32), np.ones(shape, bool)
    changes = {
        "shape": lambda: (np.zeros(draw.choice(((), (0,), (1,), (*shape, 2), shape[1:], (2, *shape)))), mask),
        "values": lambda: (np.full(shape, draw.choice((np.nan, np.inf, 1e39, -3.5e38))), mask),
        "type": lambda: (x.astype(draw.choice(("c8", "U3", "S3", "f2", "i1", "?", "M8[s]", "V4", "u8"))), mask),
        "mask shape": lambda: (x, mask[:1, :1]), "mask values": lambda: (x, np.full(shape, draw.choice((2.0, np.nan)))),
        "no change": lambda: (x, mask), "nothing may move": lambda: (x, ~mask),
    }
    change = draw.choice((*changes, "objects", "archive", "damage", "damage", "mask damage", "header"))
    arrays = changes.get(change, changes["no change"])()
    files = {INPUT: _npy(arrays[0]), MASK: _npy(arrays[1])}
    if change == "objects":
        files[INPUT] = _npy(np.array([{}, []], object))
    elif change == "archive":
        buffer = io.BytesIO()
        np.savez(buffer, x=x)
        files[INPUT] = draw.choice((buffer.getvalue(), damage.damaged(buffer.getvalue(), draw)[1]))
    elif change in ("damage", "mask damage"):
        name = INPUT if change == "damage" else MASK
        what, files[name] = damage.damaged(files[name], draw)
        change = f"{change}: {what}"
    elif change == "header":
        files[INPUT] = files[INPUT].replace(b"'shape': (", draw.choice((
            b"'shape': (1000000000000, ", b"'shape': (-1, ", b"'shape': ((((", b"'shape': (9**9**9, ")))
    label, eps = draw.choice((("0", "0.01"), ("0", "0"), ("1", "1e30"), ("0", "1e-400"), ("-1", "0.1"), ("99", "0.1")))
    more = draw.choice(((), ("--norm", "2"), ("--clip", "0", "1"), ("--clip", "1", "2"), ("--target", "0")))
    return Mutant("input", source.name, change, (
        "verify", NET, "--input", INPUT, "--label", label, "--eps", eps, "--mask", MASK, *more, "--time-limit", limit,
        "--json", "-"), {NET: source.network, **files})


def of_table(source: Source, draw: random.Random, limit: str) -> Mutant:
    """A sweep whose table is damaged; its instances are one sound pair."""
    rows = f"{NET},{SPEC},5\n{NET},absent.vnnlib,5\n"
    change = draw.choice(("damage", "damage", "cells", "quotes", "folder"))
    if change == "damage":
        what, data = damage.damaged(rows.encode(), draw)
        change = f"damage: {what}"
    else:
        data = {"cells": f"{NET}\n{NET},{SPEC},1,2,3\n,,\n", "quotes": f'"{NET},{SPEC},5\n' * 3,
                "folder": f".,{SPEC},5\n{NET},..,5\n/dev/null,{SPEC},5\n{NET},{SPEC}\0,5\n"}[change].encode()
    return Mutant("sweep", source.name, change, ("sweep", TABLE, "--time-limit", limit, "--out", "run"),
                  {NET: source.network, SPEC: source.spec, TABLE: data})


def _input_shape(network: bytes) -> tuple[int, ...]:
    import onnx
    model = onnx.load_from_string(network)
    stored = {t.name for t in model.graph.initializer}
    (info,) = [i for i in model.graph.input if i.name not in stored]
    return tuple(max(1, d.dim_value) for d in info.type.tensor_type.shape.dim)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
