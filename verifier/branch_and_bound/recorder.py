"""Recording what a search does, in the form of docs/proofs.md.

The search calls a few methods at its turns; anything that they cannot describe ends the recording with a reason
(`refusal`), and never in an incomplete file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.journal import GRID, LOWER_CUT, NO_ROW, NONE, UPPER_CUT, Journal, Noted, keeps_grid, slope_places
from verifier.branch_and_bound.domains import Domains, Layout
from verifier.certificate import CLOSED, KEPT, NO_BRANCH, Array, ProofWriter, pack_codes

if TYPE_CHECKING:
    from bounds.backward import Backward
    from bounds.beta_crown import Reached
    from verifier.branch_and_bound.bounding import Bounder
    from verifier.branch_and_bound.plan import Plan
    from verifier.problem import Problem
    from verifier.property import Property
    from verifier.witness import Witness

# Settings of a search whose effects are recorded. A new one that is in use ends the recording until it is covered here.
PLAN_SETTINGS = {"inputs", "neurons", "refresh", "joint", "cuts", "batch", "iterations", "why", "ascents",
                 "branching"}
BOUNDER_SETTINGS = {"graph", "question", "layout", "method", "refresh", "warm", "programmes", "affine",
                    "recorder", "probes", "rounded"}
IDENTITY_RTOL = 1e-3  # a folded neuron against the tensor whose name it carries, in float32


def _recording(step: Callable[..., None]) -> Callable[..., None]:
    """A step of the recording: nothing after a refusal; what goes wrong (a full disk, no memory) is one."""
    @functools.wraps(step)
    def guarded(self: Recorder, *args: Any) -> None:
        if self.refusal:
            return
        try:
            step(self, *args)
        except (OSError, MemoryError, RuntimeError) as error:
            self.refuse(f"{type(error).__name__}: {error}")
    return guarded


@dataclass(frozen=True)
class ProofTarget:
    """Where a proof goes, and what identifies the network and the property (see docs/proofs.md)."""

    path: Path
    network: dict[str, Any]
    property: dict[str, Any]


@dataclass(eq=False)
class Recorder:
    """One proof file in the making. `refusal`: why there will be none ('' while there will)."""

    target: ProofTarget
    problem: Problem
    writer: ProofWriter
    refusal: str = ""
    proved: set[int] = field(default_factory=set)
    leaves: int = 0
    nodes: int = 0
    _passes: dict[int, tuple[Journal, int]] = field(default_factory=dict)

    @staticmethod
    def of(target: ProofTarget, problem: Problem, source: Graph) -> Recorder:
        """`source`: the network as read, whose tensors the search graph's neurons are named after."""
        sets = problem.tensors.sets
        recorder = Recorder(target, problem, ProofWriter(target.path))
        graph = problem.graph
        recorder.refusal = unnamed_neurons(graph, source, sets.centre_point[:1])
        nodes, asked = graph.nodes, problem.property
        number = {id(region): u for u, region in enumerate(asked.regions)}
        recorder.writer.block("header", {
            **_about(target), "verdict": "verified",
            "neurons": [[nodes[i].name, torch.Size(nodes[i].shape).numel()] for i in graph.relaxed_inputs],
            "activations": [nodes[i].name for i in slope_places(graph)[0]],
        }, {"region": np.array([number[id(branch.region)] for branch in asked.branches], np.int32)})
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
    def kept(self, regions: Tensor, kept: Tensor, journal: Journal) -> None:
        """Bounds of neurons over `regions` at positions `kept` that later searches start from, in place of earlier
        ones."""
        for k in kept.tolist():
            self._passes[int(regions[k])] = journal, k

    def _write_passes(self) -> None:
        layout = Layout.of(self.problem.graph)
        journals: dict[int, tuple[Journal, list[int], list[int]]] = {}
        for region, (journal, k) in self._passes.items():
            _, regions, places = journals.setdefault(id(journal), (journal, [], []))
            regions.append(region)
            places.append(k)
        for journal, regions, places in journals.values():
            at = torch.tensor(places)
            self.writer.add("pass", region=np.array(regions, np.int32))
            codes = self._intervals(journal, layout, at, "pass")
            place = np.full(int(at.max()) + 1, -1)
            place[places] = np.arange(len(places))
            for node, noted, domain, neuron, sign in journal.polished:
                flat = _numpy(neuron) + self._place(layout, node)
                row, side = place[_numpy(domain)], _numpy(sign)
                code = codes[row, flat]
                wanted = (row >= 0) & (code != NO_ROW) & (code != np.where(side > 0, UPPER_CUT, LOWER_CUT))
                part = noted.take(torch.from_numpy(wanted.nonzero()[0]).to(noted.index.device))
                self.writer.add("polish", at=row[wanted].astype(np.int32), neuron=flat[wanted].astype(np.int32),
                                sign=side[wanted].astype(np.int8), **_slopes(part))
            self.writer.flush("passes")
        self._passes.clear()

    def _intervals(self, journal: Journal, layout: Layout, at: Tensor, table: str, first: int = 0) -> Array:
        """Add how intervals follow, for some domains "V" of a refinement (the entries first, first + 1, ... of the
        table); the rows of neurons "V m"."""
        codes = np.zeros((len(at), layout.total - layout.inputs), np.uint8)
        if journal.rows:
            codes = _numpy(layout.flat(journal.rows)[at])
            self.writer.add(table, rows=pack_codes(codes))
        slopes = torch.cat([journal.slopes[i][:, at].transpose(0, 1).flatten(1) for i in sorted(journal.slopes)], 1) \
            if journal.slopes else torch.zeros(len(at), 0)
        kept = _numpy(slopes)
        self.writer.add(table, lines=np.packbits(kept != 0, axis=1) if keeps_grid(self.problem.graph) else kept)
        places, _ = slope_places(self.problem.graph)
        here = np.full(int(at.max()) + 1 if len(at) else 0, -1)
        here[_numpy(at)] = np.arange(len(at))
        for node, domain, neuron, slope in journal.narrow:
            inside = _numpy(domain) < len(here)
            row = here[_numpy(domain)[inside]]
            self.writer.add("narrow", at=(first + row[row >= 0]).astype(np.int32),
                            slope=(_numpy(neuron)[inside][row >= 0] + places[node]).astype(np.int32),
                            value=_numpy(slope)[inside][row >= 0].astype(np.float64))
        return codes

    @staticmethod
    def _place(layout: Layout, node: int) -> int:
        return layout.offsets[layout.nodes.index(node)] - layout.inputs

    # ------------------------------------------------------------------ one search

    @_recording
    def begin(self, bounder: Bounder, plan: Plan, roots: Domains) -> None:
        """A search starts from `roots`, whose nodes are numbered from 0."""
        for settings, known in ((plan, PLAN_SETTINGS), (bounder, BOUNDER_SETTINGS)):
            for name in (f.name for f in fields(settings)):
                if name not in known and getattr(settings, name):
                    self.refuse(f"the setting {name} of the search is not covered by proof files yet")
        if self.refusal:
            return
        self._write_passes()
        domain, slot = roots.open.nonzero(as_tuple=True)
        branch = bounder.question.branches[roots.region[domain], slot]
        self._seen = set(branch.tolist())
        self._cuts, self._visits = bounder.affine is not None, 0
        self.writer.block("tree", {"cuts": self._cuts}, {
            "region": _numpy(roots.region).astype(np.int32), "count": _numpy(roots.open.sum(1)).astype(np.int32),
            "branch": _numpy(branch).astype(np.int32)})

    @_recording
    def end(self, nodes: int, complete: bool) -> None:
        """The search is over; it made so many nodes."""
        self._flush()
        if complete:
            self.proved |= self._seen
        self.writer.block("closed" if complete else "abandoned", {"nodes": nodes})
        self.nodes += nodes

    @_recording
    def split(self, parents: Domains) -> None:
        """Domains were split, in order."""
        self.writer.add("split", parent=_numpy(parents.node).astype(np.int32),
                        variable=_numpy(parents.choice).astype(np.int32),
                        point=_numpy(parents.point).astype(np.float64))

    @_recording
    def bounded(self, bounder: Bounder, before: Domains, after: Domains, group_domain: Tensor, branch: Tensor,
                done: Tensor, single: Tensor | None, contradicted: Tensor, engine: Backward, reached: Reached,
                shown_empty: list[Noted]) -> None:
        """A batch was bounded: `done` "G" groups are closed, by one row alone where `single` "G" names one (else -1);
        `shown_empty` (index: domains): multipliers on their neurons show them to be empty."""
        empty = contradicted.clone()
        for noted in shown_empty:
            empty[noted.index] = True
        if bool((engine.empty & ~empty).any()):
            return self.refuse("a domain was found empty in a way that proof files do not cover yet")
        self.leaves += int((~after.open.any(1)).sum())
        missing = done & ~empty[group_domain]
        # A visit that closes nothing is left out, unless its intervals and planes are handed on.
        visited = empty | self._cuts
        visited[group_domain[missing]] = True
        at = visited.nonzero().squeeze(1)
        if not len(at):
            return None
        assert engine.journal is not None
        place = torch.full_like(before.node, -1)
        place[at] = self._visits + torch.arange(len(at), device=at.device)
        self.writer.add("visit", node=_numpy(before.node[at]).astype(np.int32))
        self._intervals(engine.journal, bounder.layout, at, "visit", self._visits)
        self._visits += len(at)
        for noted in shown_empty:
            self._certificates(bounder, noted, place[noted.index], torch.full_like(noted.index, NO_BRANCH),
                               torch.full_like(noted.index, CLOSED))
        wanted = ~empty[group_domain] if self._cuts else missing.clone()
        if single is not None:
            alone = (single >= 0) & missing
            self._single_rows(bounder, place[group_domain[alone]], branch[alone], single[alone])
            missing, wanted = missing & ~alone, wanted & ~alone
        for noted in reached.noted:
            part = noted.take(wanted[noted.index].nonzero().squeeze(1))
            missing[part.index] = False
            self._certificates(bounder, part, place[group_domain[part.index]], branch[part.index],
                               torch.where(done[part.index], CLOSED, KEPT))
        if bool(missing.any()):
            return self.refuse("a domain was closed without a certificate")
        if self._cuts or self.writer.is_full:  # later nodes of a tree with cuts need the intervals of earlier ones
            self._flush()
        return None

    def _flush(self) -> None:
        self.writer.flush("nodes")
        self._visits = 0

    def _single_rows(self, bounder: Bounder, place: Tensor, branch: Tensor, row: Tensor) -> None:
        """Certificates of one row of a branch each, with default lines."""
        if not len(place):
            return
        _, total = slope_places(self.problem.graph)
        weights = torch.zeros(len(place), bounder.question.mask.shape[1], dtype=torch.float64, device=place.device)
        weights[torch.arange(len(place), device=place.device), row] = 1.0
        grid = keeps_grid(self.problem.graph)
        none = torch.full((len(place), total), NONE, dtype=torch.uint8) if grid else \
            torch.full((len(place), total), torch.nan, dtype=self.problem.graph.dtype)
        self._certificates(bounder, Noted(place, none, GRID if grid else 0, weights=weights), place, branch,
                           torch.full_like(branch, CLOSED))

    def _certificates(self, bounder: Bounder, noted: Noted, place: Tensor, branch: Tensor, kind: Tensor) -> None:
        """Add certificates at visits `place`, of branches with their weighted rows."""
        if not len(place):
            return
        count = np.zeros(len(place), np.int32)
        neuron, value = np.zeros(0, np.int32), np.zeros(0)
        if noted.multipliers:
            layout = bounder.layout
            like = next(iter(noted.multipliers.values()))
            flat = layout.flat({i: noted.multipliers[i] if i in noted.multipliers else like.new_zeros(len(like), *s)
                                for i, s in zip(layout.nodes, layout.shapes, strict=True)})
            row, at = flat.nonzero(as_tuple=True)
            count = np.bincount(_numpy(row), minlength=len(place)).astype(np.int32)
            neuron, value = _numpy(at).astype(np.int32), _numpy(flat[row, at])
        table = "fine" if noted.slopes.dtype == torch.int32 else "certificate"
        weights = np.zeros(0)
        of_rows = (branch != NO_BRANCH).nonzero().squeeze(1)
        if len(of_rows):
            mask = bounder.question.mask[branch[of_rows]]
            w = torch.ones_like(mask, dtype=torch.float64) if noted.weights is None else noted.weights[of_rows].double()
            weights = _numpy((w * self._scales[bounder.question.rows[branch[of_rows]]])[mask])
        self.writer.add(table, at=_numpy(place).astype(np.int32), branch=_numpy(branch).astype(np.int32),
                        kind=_numpy(kind).astype(np.uint8), weights=weights, m_count=count, m_neuron=neuron,
                        m_value=value.astype(np.float64), **_slopes(noted))

    @functools.cached_property
    def _scales(self) -> Tensor:
        """"N": by what the property's rows were multiplied on their way into tensors."""
        tensors = self.problem.tensors
        D = tensors.C if tensors.D is None else tensors.D
        rows = [row for branch in self.problem.property.branches for row in branch.rows]
        first = [(tensors.C[n, row.y[0][0]], row.y[0][1]) if row.y else (D[n, row.x[0][0]], row.x[0][1])
                 for n, row in enumerate(rows)]
        return torch.tensor([float(Fraction(float(number)) / exact) for number, exact in first], dtype=torch.float64,
                            device=tensors.C.device)

    # ------------------------------------------------------------------ the file

    def finish(self) -> dict[str, Any]:
        """Put the file in its place if it proves every branch; what became of it, for the report."""
        missing = self.problem.tensors.branches - len(self.proved)
        if missing and not self.refusal:
            self.refuse(f"{missing} branches have no recorded proof")
        if self.refusal:
            self.discard()
            return {"written": False, "reason": self.refusal}
        self.writer.block("end", {})
        size = self.writer.finish()
        return {"written": True, "bytes": size, "leaves": self.leaves, "nodes": self.nodes}

    def discard(self) -> None:
        """Remove what is not finished."""
        self.writer.discard()


def record_witness(target: ProofTarget, witness: Witness, property: Property) -> dict[str, Any]:
    """A file that carries a witness: the point, moved into the set as written where rounding has led out of it."""
    region = property.branches[witness.branch].region
    x = [str(min(max(Fraction(float(v)), Fraction(low)), Fraction(high)))
         for v, low, high in zip(witness.x.ravel(), region.exact_lower, region.exact_upper, strict=True)]
    writer = ProofWriter(target.path)
    try:
        writer.block("header", {**_about(target), "verdict": "falsified", "x": x, "branch": witness.branch})
        writer.block("end", {})
        return {"written": True, "bytes": writer.finish()}
    except OSError as error:
        return {"written": False, "reason": f"{type(error).__name__}: {error}"}
    finally:
        writer.discard()


def _about(target: ProofTarget) -> dict[str, Any]:
    return {"claim": "real", "network": target.network, "property": target.property}


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


def _slopes(noted: Noted) -> dict[str, Array]:
    q = _numpy(noted.slopes)
    given = ~np.isnan(q) if noted.grid == 0 else q != NONE if noted.grid == GRID else q >= 0
    kind = q.dtype if noted.grid == 0 else np.uint8 if noted.grid == GRID else np.uint16
    return {"mask": np.packbits(given, axis=1), "slopes": q[given].astype(kind)}


__all__ = ["ProofTarget", "Recorder", "record_witness", "unnamed_neurons"]
