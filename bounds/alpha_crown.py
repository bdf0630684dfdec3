"""alpha-CROWN: projected gradient ascent over the free slopes of the relaxation (arXiv:2011.13824).

Every row has slopes of its own at every neuron on its way. As each row's bound depends on its own
slopes alone once the enclosures before it are fixed, layers are optimised one after the other:
later layers start from the final enclosures of the earlier ones, no gradient runs through
enclosures, and rows run in blocks that stay in cache for all their iterations. Any slope in its box
gives a valid bound, so the best value of each row is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bounds.alpha_slopes import initial
from bounds.backward import Backward, Block, Params, adaptive
from bounds.bounds import Bounds, LinearRows
from bounds.final import finish, output_rows, part_of
from bounds.graph.graph import Graph
from bounds.intermediate import RowBound, refine
from bounds.interval import Interval
from bounds.journal import GRID, Journal, Noted, keeps_grid, noted_slopes, nothing, slopes_of, snapped
from bounds.ops.base import Elementwise
from bounds.proved import confirmed, value_at
from bounds.rows import Rows
from bounds.sets import InputSet

# Slopes and their gradients of a block; a few MB, as for BLOCK_COEFFICIENTS.
BLOCK_COEFFICIENTS = 1 << 20
# Iterations after which decided neurons leave their block, if they are this share of it.
DECIDE_AFTER = (1, 2, 4, 8)
DECIDED_SHARE = 0.1


@dataclass(frozen=True)
class AlphaCrown:
    """Settings: `iterations` evaluations of each asked row and `neuron_iterations` of each neuron's rows (0: neurons
    keep CROWN's bounds), the first at CROWN's lines. Steps are shares of each parameter's box, from `step` down to
    `last_step`. Once `stop` says so, what has been reached is returned: still valid, only less tight. With a
    `target`, asked rows are not improved further once all of their block lie above it.

    The steps must add up to more than one box, and do from six evaluations on. Neurons converge fast: on a ResNet
    20 evaluations each instead of 8 moved the asked rows by 0.06 %.
    """

    iterations: int = 20
    neuron_iterations: int = 8
    step: float = 0.5
    last_step: float = 0.03
    stop: Callable[[], bool] = bool  # never: bool() is False
    target: float = math.inf

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, *,
              given: Mapping[int, Interval] | None = None, params: Any = None, journal: Journal | None = None,
              prover: Backward | None = None) -> Bounds:
        """Lower bounds of the rows; `params` (from an earlier answer on the same rows) warm-start the slopes. `prover`:
        an engine in float64 that proves the enclosures (see `refine`)."""
        engine = Backward(graph, sets, adaptive)
        engine.journal, engine.prover = journal, prover
        polish = self._optimise_neurons(engine) if self.neuron_iterations else None
        intervals = refine(engine, given=given, row_bound=engine.lower, polish=polish)
        return self.optimise_output(engine, rows, intervals, params)

    # ------------------------------------------------------------------ neurons

    def _optimise_neurons(self, engine: Backward) -> RowBound:
        def row_bound(node: int, rows: Rows, threshold: float | None) -> Tensor:
            return torch.cat([self._climb(engine, block, threshold) if not self.stop()
                              else rows_untouched(block)
                              for block in engine.blocks(node, rows, BLOCK_COEFFICIENTS)])
        return row_bound

    def _climb(self, engine: Backward, block: Block, threshold: float | None) -> Tensor:
        """Best lower bounds "N" of a block of neuron rows, two a neuron. Neurons with a side that reaches
        the threshold are decided and leave."""
        if engine.journal is not None:
            return self._climb_noted(engine, block)
        with torch.no_grad():
            result = engine.value(block)
            params, low, high = initial(engine, block)
        best = result
        alive: Tensor | None = None
        for k in range(1, self.neuron_iterations if params else 0):
            if self.stop():
                break
            now = self._step(partial(engine.value, block), params, low, high, self._length(k, self.neuron_iterations))
            best = torch.maximum(best, now)
            if threshold is not None and k in DECIDE_AFTER:
                done = (best >= threshold).view(-1, 2).any(1).repeat_interleave(2)
                if int(done.sum()) >= DECIDED_SHARE * done.shape[0]:
                    result = best if alive is None else result.index_copy(0, alive, best)
                    if engine.prover is not None:
                        gone = done.nonzero().squeeze(1)
                        self._propose(engine, block.take(gone), {i: _rows_of(p, gone) for i, p in params.items()})
                    rest = (~done).nonzero().squeeze(1)
                    if not rest.numel():
                        return result
                    alive = rest if alive is None else alive[rest]
                    best = best[rest]
                    block = block.take(rest)
                    params, low, high = ({i: _rows_of(p, rest) for i, p in group.items()}
                                         for group in (params, low, high))
        with torch.no_grad():
            best = torch.maximum(best, engine.value(block, params))
        self._propose(engine, block, params)
        return best if alive is None else result.index_copy(0, alive, best)

    @staticmethod
    def _propose(engine: Backward, block: Block, params: Params) -> None:
        """Have the prover, if there is one, evaluate what was reached."""
        if engine.prover is not None:
            engine.proposals.append((block.rows, value_at(engine.prover, block, params)))

    def _climb_noted(self, engine: Backward, block: Block) -> Tensor:
        """As `_climb`, on the grid of the journal, which gets the best slopes of all rows."""
        assert engine.journal is not None and block.rows.index is not None and block.rows.sign is not None
        index, sign = block.rows.index, block.rows.sign
        with torch.no_grad():
            engine.value(block)
            params, low, high = initial(engine, block)
        grid = GRID if keeps_grid(engine.graph) else 0
        params = {i: snapped(p, low[i], high[i], GRID) for i, p in params.items()}
        best: Tensor | None = None
        best_params = params
        last = max(1, self.neuron_iterations) if params else 1
        for k in range(1, last + 1):
            at = {i: p.clone() for i, p in params.items()}
            if k == last or self.stop():
                with torch.no_grad():
                    now = engine.value(block, params)
            else:
                now = self._step(partial(engine.value, block), params, low, high,
                                 on_grid(self._length(k, self.neuron_iterations)))
            if best is None:
                best, best_params = now, at
            else:
                better = now > best
                best = torch.maximum(best, now)
                best_params = {i: torch.where(better.view(1, -1, *(1,) * (p.dim() - 2)), at[i], p)
                               for i, p in best_params.items()}
            if k < last and self.stop():
                break
        assert best is not None

        def in_full(i: int, q: Tensor) -> Tensor:
            layout, shape = block.gathered[i, "layout"], engine.graph.nodes[i].shape
            # Outside of a window (or of the columns that matter) is no parameter.
            wide = q if grid == 0 else q.to(torch.int16)
            full = torch.stack([replace(layout, A=k).as_full(shape).A for k in wide])
            met = torch.stack([replace(layout, A=torch.ones_like(k)).as_full(shape).A for k in wide])
            return torch.where(met == 1, full, torch.full_like(full, nothing(grid))).to(q.dtype)
        with torch.no_grad():
            slopes = {i: self._slopes(engine, block, i, p, low[i], high[i], grid) for i, p in best_params.items()}
            noted = Noted(torch.arange(len(sign)), noted_slopes(engine.graph, slopes, len(sign), grid, in_full), grid)
        domain = block.rows.owner.domains(len(sign), sign)
        engine.journal.polished.append((block.start, noted, domain, index, sign))
        return best

    @staticmethod
    def _slopes(engine: Backward, block: Block, node: int, p: Tensor, low: Tensor, high: Tensor, grid: int) -> Tensor:
        """What is noted of the parameters "K N ..." of one node."""
        source = engine.intervals[engine.graph.nodes[node].inputs[0]]
        layout, op = block.gathered[node, "layout"], engine.graph.nodes[node].op
        assert isinstance(op, Elementwise)
        x = source if op.reuses_lines else source.map(layout.gather)
        return slopes_of(op.select(layout.gather, source.lower.shape), x, p, low, high, grid)

    # ------------------------------------------------------------------ asked rows

    def confirm_output(self, prover: Backward, bounds: Bounds, rows: LinearRows) -> Tensor:
        """What the prover, which has enclosures, says of asked rows (in its dtype) at the slopes that were reached:
        lower bounds "N"."""
        parts, first = [], 0
        for block, params in bounds.reached:
            chosen = slice(first, first + block.rows.count)
            parts.append(confirmed(prover, block, params, part_of(rows, chosen)))
            first = chosen.stop
        return torch.cat(parts)

    def optimise_output(self, engine: Backward, rows: LinearRows, intervals: dict[int, Interval],
                        warm: Any = None) -> Bounds:
        """Optimise the asked rows on fixed enclosures; the answer holds the best slopes of each row."""
        start = output_rows(engine, rows)
        size = engine.block_size(engine.graph.output, start, BLOCK_COEFFICIENTS)
        parts, blocks = [], []
        for number, first in enumerate(range(0, start.count, size)):
            chosen = slice(first, first + size)
            block = Block(engine.graph.output, start.take(chosen))
            blocks.append(block)
            parts.append(self._climb_output(engine, block, part_of(rows, chosen), warm[number] if warm else None))
        lower, A, b = (torch.cat(group) for group in zip(*((p[0], p[1], p[2]) for p in parts), strict=True))
        params = [p[3] for p in parts]
        return Bounds(lower, None, intervals, params, A, b, tuple(zip(blocks, params, strict=True)))

    def _climb_output(self, engine: Backward, block: Block, rows: LinearRows, warm: Params | None
                      ) -> tuple[Tensor, Tensor, Tensor, Params]:
        with torch.no_grad():
            best, A, b = finish(engine, block, rows)
            params, low, high = initial(engine, block)
        best_params = {i: p.clone() for i, p in params.items()}
        if warm is not None:
            params = {i: torch.minimum(torch.maximum(warm[i], low[i]), high[i]) for i in params}
        kept: list[tuple[Tensor, Tensor]] = []

        def value(params: Params) -> Tensor:
            lower, A, b = finish(engine, block, rows, params)
            kept[:] = [(A.detach(), b.detach())]
            return lower

        first = 0 if warm is not None else 1
        for k in range(first, self.iterations + 1):
            if not params or self.stop() or bool((best > self.target).all()):
                break
            before = {i: p.clone() for i, p in params.items()} if k < self.iterations else params
            if k < self.iterations:
                now = self._step(value, params, low, high, self._length(max(k, 1), self.iterations))
            else:
                with torch.no_grad():
                    now = value(params)
            better = now > best
            best = torch.where(better, now, best)
            A = torch.where(better.view(-1, *(1,) * (A.dim() - 1)), kept[0][0], A)
            b = torch.where(better, kept[0][1], b)
            for i, p in before.items():
                best_params[i] = torch.where(better.view(1, -1, *(1,) * (p.dim() - 2)), p, best_params[i])
        return best, A, b, best_params

    # ------------------------------------------------------------------ one step

    def _length(self, k: int, iterations: int) -> float:
        """Length of the k-th step (from 1) of `iterations - 1`: shrinking geometrically."""
        return self.step * (self.last_step / self.step) ** ((k - 1) / max(1, iterations - 2))

    def _step(self, value: Callable[[Params], Tensor], params: Params, low: Params, high: Params,
              length: float) -> Tensor:
        """Evaluate at `params` and move them in place along the signs of their gradient."""
        with torch.enable_grad():
            for p in params.values():
                p.requires_grad_(True)
            now = value(params)
            grads = torch.autograd.grad(now.sum(), list(params.values()), allow_unused=True)
        for (i, p), grad in zip(params.items(), grads, strict=True):
            p.requires_grad_(False)
            if grad is not None:
                p.addcmul_(grad.sign_(), high[i] - low[i], value=length)
                torch.minimum(torch.maximum(p, low[i], out=p), high[i], out=p)
        return now.detach()


def on_grid(length: float) -> float:
    """A step that leads from multiples of 1/GRID to others."""
    return max(1, round(length * GRID)) / GRID


def rows_untouched(block: Block) -> Tensor:
    """No new bounds for a block of neuron rows."""
    assert block.rows.sign is not None
    return torch.full_like(block.rows.sign, -torch.inf)


def _rows_of(p: Tensor, chosen: Tensor) -> Tensor:
    """Parameters "K N ..." of some rows ("K 1 ..." holds for all)."""
    return p if p.shape[1] == 1 else p.index_select(1, chosen)


def bound(graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
          params: Any = None) -> Bounds:
    """alpha-CROWN with the default settings."""
    return AlphaCrown().bound(graph, sets, rows, given=given, params=params)
