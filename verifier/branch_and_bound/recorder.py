"""Recording what a search does, in the form of `verifier.certificate`.

The search calls a few methods at its turns; anything that they cannot describe ends the recording with a reason
(`refusal`), and never in an incomplete file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.journal import FINE_GRID, GRID, NONE, Journal, Noted
from verifier.branch_and_bound.domains import Domains, Layout
from verifier.certificate import CLIPPED_AWAY, CLOSED, CONTRADICTED, EMPTY, OPEN, Array, ProofWriter, pack_codes

if TYPE_CHECKING:
    from bounds.backward import Backward
    from bounds.beta_crown import Reached
    from verifier.branch_and_bound.bounding import Bounder
    from verifier.branch_and_bound.plan import Plan
    from verifier.problem import Problem

# Settings of a search whose effects are recorded. A new one that is in use ends the recording until it is covered here.
PLAN_SETTINGS = {"inputs", "neurons", "refresh", "clips", "joint", "cuts", "contracts", "batch", "iterations", "why",
                 "ascents", "branching"}
BOUNDER_SETTINGS = {"graph", "question", "layout", "method", "refresh", "clips", "warm", "programmes", "affine",
                    "recorder", "probes", "fenced", "contractor", "rounded"}
IDENTITY_RTOL = 1e-3  # a folded neuron against the tensor whose name it carries, in float32


def _recording(step: Callable[..., None]) -> Callable[..., None]:
    """A step of the recording: nothing after a refusal; what goes wrong (a full disk, no memory) is one."""
    @functools.wraps(step)
    def guarded(self: Recorder, *args: Any) -> None:
        if self.refusal:
            return
        try:
            step(self, *args)
            self.writer.settle()
        except (OSError, MemoryError, RuntimeError) as error:
            self.refuse(f"{type(error).__name__}: {error}")
    return guarded


@dataclass(frozen=True)
class ProofTarget:
    """Where a proof goes, and what identifies the network and the property (see `verifier.certificate`)."""

    path: Path
    network: dict[str, Any]
    property: dict[str, Any]


@dataclass(eq=False)
class Recorder:
    """One proof file in the making. `refusal`: why there will be none ('' while there will)."""

    target: ProofTarget
    problem: Problem
    writer: ProofWriter
    free: Tensor
    refusal: str = ""
    proved: set[int] = field(default_factory=set)
    trees: list[dict[str, Any]] = field(default_factory=list)
    leaves: int = 0
    _first: int = 0
    _passes: int = 0

    @staticmethod
    def of(target: ProofTarget, problem: Problem, source: Graph) -> Recorder:
        """`source`: the network as read, whose tensors the search graph's neurons are named after."""
        sets = problem.tensors.sets
        free = (sets.lower < sets.upper).flatten(1).any(0).nonzero().squeeze(1)
        recorder = Recorder(target, problem, ProofWriter(target.path), free)
        graph = problem.graph
        recorder.refusal = unnamed_neurons(graph, source, sets.centre_point[:1])
        kinds = graph.parameter_kinds
        nodes = graph.nodes
        recorder.writer.header({
            "claim": "real", "evidence": "float", "network": target.network, "property": target.property,
            "inputs": torch.Size(graph.input_shape).numel(), "free_inputs": free.tolist(), "grid": GRID,
            "fine_grid": FINE_GRID, "float": str(graph.dtype).removeprefix("torch."),
            "neurons": [{"name": nodes[i].name, "size": torch.Size(nodes[i].shape).numel()}
                        for i in graph.relaxed_inputs],
            "activations": [{"output": nodes[i].name, "input": nodes[nodes[i].inputs[0]].name,
                             "kind": nodes[i].op.kind, "parameters": count} for i, count in sorted(kinds.items())],
        })
        return recorder

    def not_proved(self) -> Tensor:
        """bool "K": branches without a recorded proof."""
        tensors = self.problem.tensors
        out = torch.ones(tensors.branches, dtype=torch.bool, device=tensors.bound.device)
        out[list(self.proved)] = False
        return out

    def refuse(self, why: str) -> None:
        if not self.refusal:
            self.refusal = why

    # ------------------------------------------------------------------ bounds over whole regions

    @_recording
    def kept(self, regions: Tensor, journal: Journal) -> None:
        """Bounds of neurons over regions that later stages and searches rely on."""
        layout = Layout.of(self.problem.graph)
        number = np.int32(self._passes)
        self._passes += 1
        region = _numpy(regions).astype(np.int32)
        self.writer.add("passes", number=np.full(len(region), number), region=region, codes=_codes(layout, journal))
        for node, domain, neuron, low, high in journal.narrow:
            self.writer.add("widened", **{"pass": np.full(len(domain), number)}, region=region[_numpy(domain)],
                            neuron=(_numpy(neuron) + self._place(layout, node)).astype(np.int32),
                            low=_numpy(low).astype(np.float64), high=_numpy(high).astype(np.float64))
        for node, noted, domain, neuron, sign in journal.polished:
            count = len(neuron)
            self.writer.add("polish", **{"pass": np.full(count, number)}, region=region[_numpy(domain)],
                            neuron=(_numpy(neuron) + self._place(layout, node)).astype(np.int32),
                            sign=_numpy(sign).astype(np.int8), **_slopes(noted))

    @staticmethod
    def _place(layout: Layout, node: int) -> int:
        return layout.offsets[layout.nodes.index(node)] - layout.inputs

    # ------------------------------------------------------------------ one search

    @_recording
    def begin(self, bounder: Bounder, plan: Plan, roots: Domains) -> None:
        """A search starts from `roots`, whose nodes are numbered from 0."""
        if plan.contracts or bounder.contractor is not None:
            self.refuse("contraction of domains is not covered by proof files yet")
        for settings, known in ((plan, PLAN_SETTINGS), (bounder, BOUNDER_SETTINGS)):
            for name in (f.name for f in fields(settings)):
                if name not in known and getattr(settings, name):
                    self.refuse(f"the setting {name} of the search is not covered by proof files yet")
        if self.refusal:
            return
        self._settings = {"refresh": plan.refresh, "clips": plan.clips, "cuts": bounder.affine is not None}
        region = roots.region
        domain, slot = roots.open.nonzero(as_tuple=True)
        branch = bounder.question.branches[region[domain], slot]
        self._seen = set(branch.tolist())
        self.writer.add("roots", node=self._nodes(roots.node), region=_numpy(region).astype(np.int32),
                        count=_numpy(roots.open.sum(1)).astype(np.int32))
        self.writer.add("roots", branch=_numpy(branch).astype(np.int32))

    @_recording
    def end(self, nodes: int, complete: bool) -> None:
        """The search is over; it made so many nodes."""
        if complete:
            self.proved |= self._seen
            self.trees.append({"first": self._first, "nodes": nodes, "branches": sorted(self._seen), **self._settings})
        self._first += nodes

    @_recording
    def split(self, parents: Domains, children: Domains) -> None:
        """Domains were split; the lower halves come first among the children."""
        count = len(parents)
        node = self._nodes(children.node)
        self.writer.add("splits", parent=self._nodes(parents.node), variable=_numpy(parents.choice).astype(np.int32),
                        point=_numpy(parents.point).astype(np.float64), lower=node[:count], upper=node[count:])
        on_neuron = (parents.choice >= torch.Size(self.problem.graph.input_shape).numel()).repeat(2)
        moved = (children.low != parents.low.repeat(2, 1)) | (children.high != parents.high.repeat(2, 1))
        fenced = on_neuron & moved.any(1)
        if bool(fenced.any()):
            self.writer.add("fences", node=node[_numpy(fenced)],
                            low=_numpy(children.low[fenced][:, self.free]).astype(np.float64),
                            high=_numpy(children.high[fenced][:, self.free]).astype(np.float64))

    @_recording
    def again(self, parents: Tensor, node: Tensor) -> None:
        """Domains are going to be bounded once more, under new numbers."""
        self.writer.add("again", parent=self._nodes(parents), node=self._nodes(node))

    @_recording
    def bounded(self, bounder: Bounder, before: Domains, after: Domains, group_domain: Tensor, branch: Tensor,
                done: Tensor, single: Tensor | None, contradicted: Tensor, engine: Backward, reached: Reached, gone:
                Tensor,
                shown_empty: list[Noted]) -> None:
        """A batch was bounded: `done` "G" groups are closed, by one row alone where `single` "G" names one (else -1);
        `gone` "B": clipping left nothing; `shown_empty` (index: domains) that multipliers on their neurons show
        empty."""
        empty = contradicted.clone()
        for noted in shown_empty:
            empty[noted.index] = True
        if bool((engine.empty & ~empty).any()):
            return self.refuse("a domain was found empty in a way that proof files do not cover yet")
        node = self._nodes(before.node)
        clipped = ((after.low != before.low) | (after.high != before.high)).any(1) & ~empty
        flags = contradicted.to(torch.uint8) * CONTRADICTED + (gone & ~empty).to(torch.uint8) * CLIPPED_AWAY
        visits: dict[str, Array] = {"node": node, "flags": _numpy(flags)}
        assert engine.journal is not None
        if bounder.refresh:
            visits["codes"] = _codes(bounder.layout, engine.journal)
        self.writer.add("visits", **visits)
        self.writer.add("visits", count=np.array([len(node)], np.int32))
        for i, domain, neuron, low, high in engine.journal.narrow:
            self.writer.add("narrow", node=node[_numpy(domain)],
                            neuron=(_numpy(neuron) + self._place(bounder.layout, i)).astype(np.int32),
                            low=_numpy(low).astype(np.float64), high=_numpy(high).astype(np.float64))
        self.leaves += int((~after.open.any(1) | gone).sum())

        for noted in shown_empty:
            if len(noted.index):
                whose = node[_numpy(noted.index)]
                kind = np.full(len(whose), EMPTY, np.uint8)
                width = bounder.question.rows.shape[1]
                self._groups(bounder, replace(noted, weights=noted.slopes.new_zeros(len(whose), width)), whose,
                             np.full(len(whose), -1, np.int32), kind)
        wanted = ~empty[group_domain]
        if single is not None:
            alone = (single >= 0) & wanted
            self.writer.add("single", node=node[_numpy(group_domain[alone])],
                            branch=_numpy(branch[alone]).astype(np.int32), row=_numpy(single[alone]).astype(np.int32))
            wanted &= single < 0
        planes = clipped | gone if bounder.affine is None else ~empty
        missing = wanted & done
        wanted &= done | planes[group_domain]
        for noted in reached.noted:
            part = noted.take(wanted[noted.index].nonzero().squeeze(1))
            if len(part.index):
                missing[part.index] = False
                self._groups(bounder, part, node[_numpy(group_domain[part.index])],
                             _numpy(branch[part.index]).astype(np.int32),
                             np.where(_numpy(done[part.index]), CLOSED, OPEN).astype(np.uint8))
        if bool(missing.any()):
            return self.refuse("a domain was closed without a certificate")
        changed = clipped & ~gone
        if bool(changed.any()):
            self.writer.add("clips", node=node[_numpy(changed)],
                            low=_numpy(after.low[changed][:, self.free]).astype(np.float64),
                            high=_numpy(after.high[changed][:, self.free]).astype(np.float64))
        return None

    def _groups(self, bounder: Bounder, noted: Noted, node: Array, branch: Array, kind: Array) -> None:
        table = "groups" if noted.grid == GRID else "fine"
        columns = {"node": node, "branch": branch, "kind": kind, **_slopes(noted)}
        count = np.zeros(len(node), np.int32)
        neuron, value = np.zeros(0, np.int32), np.zeros(0)
        if noted.multipliers:
            layout = bounder.layout
            like = next(iter(noted.multipliers.values()))
            flat = layout.flat({i: noted.multipliers[i] if i in noted.multipliers else like.new_zeros(len(like), *s)
                                for i, s in zip(layout.nodes, layout.shapes, strict=True)})
            row, place = flat.nonzero(as_tuple=True)
            count = np.bincount(_numpy(row), minlength=len(node)).astype(np.int32)
            neuron, value = _numpy(place).astype(np.int32), _numpy(flat[row, place])
        columns |= {"m_count": count, "m_neuron": neuron, "m_value": value.astype(np.float64)}
        if noted.weights is not None and (noted.weights.shape[1] > 1 or noted.grid != GRID):
            columns["weights"] = _numpy(noted.weights).astype(np.float64)
        self.writer.add(table, **columns)

    # ------------------------------------------------------------------ the file

    def finish(self) -> dict[str, Any]:
        """Put the file in its place if it proves every branch; what became of it, for the report."""
        missing = self.problem.tensors.branches - len(self.proved)
        if missing and not self.refusal:
            self.refuse(f"{missing} branches have no recorded proof")
        if self.refusal:
            self.discard()
            return {"written": False, "reason": self.refusal}
        size = self.writer.finish({"trees": self.trees})
        return {"written": True, "bytes": size, "leaves": self.leaves, "nodes": self._first}

    def discard(self) -> None:
        """Remove what is not finished."""
        self.writer.discard()

    def _nodes(self, node: Tensor) -> Array:
        return _numpy(node).astype(np.int64) + self._first


def unnamed_neurons(graph: Graph, source: Graph, x: Tensor) -> str:
    """'' if every relaxed neuron of the search graph is the element of the source's tensor of that name and place (at
    the point x "1 *input"), else a sentence."""
    found = {n.name: v for n, v in zip(source.nodes, source.values(x.to(source.dtype).to(source.device)), strict=True)}
    for i, value in enumerate(graph.values(x)):
        if i not in graph.relaxed_inputs:
            continue
        name = graph.nodes[i].name
        stored = found.get(name)
        if stored is None or stored.numel() != value.numel():
            return f"the neurons of {name} are not those of a tensor of the network"
        value, stored = value.flatten().double(), stored.flatten().to(value.device).double()
        if not bool(((value - stored).abs() <= IDENTITY_RTOL * (1 + stored.abs().max())).all()):
            return f"the neurons of {name} are not those of the network's tensor"
    return ""


def _numpy(t: Tensor) -> Array:
    return t.detach().cpu().numpy()


def _codes(layout: Layout, journal: Journal) -> Array:
    return pack_codes(_numpy(layout.flat(journal.codes)))


def _slopes(noted: Noted) -> dict[str, Array]:
    q = _numpy(noted.slopes)
    given = q != NONE if noted.grid == GRID else q >= 0
    return {"mask": np.packbits(given, axis=1),
            "slopes": q[given].astype(np.uint8 if noted.grid == GRID else np.uint16)}


__all__ = ["ProofTarget", "Recorder", "unnamed_neurons"]
