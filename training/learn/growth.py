"""Continues a lineage under a declaration that has grown: a new lineage begins with the rows and weights that stay.

    lineage = continued(delta_log, lineage, source, declaration, model, keep)

The new lineage begins where the old one ends: at its positions, with its count of learned pairs. So no example is
lost or learned twice, and the sums of both add up as those of one lineage (docs/growing.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import process
from delta_log.files import TableRows, Weight
from delta_log.fold import dense_weights, merged
from delta_log.log import Log
from delta_log.writer import hold, prune_lineages
from streaming.declaration import Declaration
from streaming.growth import Declarations, compare
from training.cuckoo.segments import Normal, Segment, Uniform
from training.learn import batch_pass
from training.learn.learner import Learner
from training.learn.state import State
from training.models.model import DenseWeight, Model
from training.models.model import load as load_model

log = process.logger("trainer")


def continued(
    delta_log: Log, lineage: str, source: str, declaration: Declaration, model: str, keep_lineages: int
) -> str:
    """The lineage to learn under `declaration`: this one, or a new one that continues it and is served from now on.

    `model` "" is the lineage's. Raises InputError if the declaration has changed, and not by growth.
    """
    declarations, newest = Declarations(delta_log.path), delta_log.newest_base(lineage)
    if newest.declaration == declaration.sha256:
        declarations.keep(declaration)
        return lineage
    remedy = "begin a new lineage (python -m training.learn.batch_pass)"
    before = declarations.grown(newest.declaration, declaration, remedy)
    for line in compare(before, declaration).added:
        log.info("%s: %s", source, line)
    prune_lineages(delta_log, keep_lineages)
    with hold(delta_log, lineage):  # else a writer of it could still learn, and the new lineage would learn it again
        base, deltas = delta_log.chain(lineage)
        last = deltas[-1] if deltas else base
        model = model or str(last.model)
        old = State(Learner(load_model(model, before)), source)
        weights, _ = dense_weights(base, deltas)
        old.check_origin(last, weights)
        state = State(Learner(load_model(model, declaration)), source)
        tables = _tables(old.learner.model, merged(base, deltas), state.learner)
        state.take_over(base, deltas, tables, grown_weights(old.learner.model, weights, state.learner))
        begun = batch_pass.begin(state, delta_log, last.positions)
        delta_log.serve(begun.lineage)
    log.info("%s continues %s of %s, and is served", begun.lineage, last.name, lineage)
    return begun.lineage


def _tables(old: Model, tables: Mapping[str, TableRows], learner: Learner) -> dict[str, TableRows]:
    """The tables whose rows stay."""
    stay = {}
    for name, rows in tables.items():
        before, now = ([s.of_table() for s in model.tables[name]] for model in (old, learner.model))
        if before != now:
            grown = grown_rows(rows, before, now)
            if grown is None:
                log.warning("table %s: the rows of %s cannot become those of %s: it begins anew", name, before, now)
                continue
            rows = grown
        stay[name] = rows
    return stay


def grown_rows(rows: TableRows, old: Sequence[Segment], new: Sequence[Segment]) -> TableRows | None:
    """The rows with new numbers at the end of segments that became longer, as a task adds one to each row.

    They begin as the new segment begins them. None if it draws them at random, or if it is another segment.
    """
    n, weights, slots = len(rows.keys), [], []
    at = slot_at = 0
    if len(old) != len(new):
        return None
    for before, now in zip(old, new, strict=True):
        drawn = isinstance(now.initializer, Uniform | Normal)
        same = type(before.optimizer) is type(now.optimizer) and before.dim <= now.dim
        if not same or drawn and before.dim < now.dim:
            return None
        value = np.full((n, now.dim), now.scale, np.float32)
        value[:, : before.dim] = rows.rows[:, at : at + before.dim]
        weights.append(value)
        of_row = rows.slots[:, slot_at : slot_at + before.slot_floats]
        # An optimizer has some numbers a weight, one kind after the other, and then those of the row.
        kinds, of_all = divmod(before.slot_floats, before.dim)
        for kind in range(kinds):
            begin = getattr(now.optimizer, "start", 0.0) if kind == 0 else 0.0
            column = np.full((n, now.dim), begin, np.float32)
            column[:, : before.dim] = of_row[:, kind * before.dim : (kind + 1) * before.dim]
            slots.append(column)
        slots.append(of_row[:, before.slot_floats - of_all :])
        at, slot_at = at + before.dim, slot_at + before.slot_floats
    return rows._replace(rows=np.concatenate(weights, 1), slots=np.concatenate(slots, 1))


def grown_weights(old: Model, weights: Mapping[str, Weight], learner: Learner) -> dict[str, Weight]:
    """The old dense weights at their places in the learner's, whose new places begin as the model begins them.

    New inputs of a matrix begin at zero: they change no output before they are learned. A weight of another shape that
    does not name its places begins anew.
    """
    grown = {}
    for name, weight in weights.items():
        now = learner.model.dense.get(name)
        places = _places(old.dense[name].axes, weight.value.shape, now) if now else None
        if now is None or places is None:
            log.warning("dense weight %s had the shape %s: it begins anew", name, weight.value.shape)
            continue
        value, slots = learner.weights[name].numpy().copy(), learner.slots[name].numpy().copy()
        if value.ndim > 1:
            new_inputs = np.setdiff1d(np.arange(value.shape[0]), places[0])
            value[np.ix_(new_inputs, *places[1:])] = 0
        value[np.ix_(*places)] = weight.value
        if slots.size:
            slots[np.ix_(*places)] = weight.slots.reshape(weight.value.shape)
        grown[name] = Weight(value, slots.ravel())
    return grown


def _places(
    axes: tuple[Sequence[str] | None, ...], shape: tuple[int, ...], now: DenseWeight
) -> list[np.ndarray[Any, Any]] | None:
    """The place of each old entry in the new weight, an array an axis; None if an entry has none."""
    new_shape = tuple(now.variable.shape)
    if len(shape) != len(new_shape):
        return None
    places = []
    for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True)):
        names, new_names = (a[axis] if axis < len(a) else None for a in (axes, now.axes))
        if names is not None and new_names is not None and set(names) <= set(new_names):
            of = {name: place for place, name in enumerate(new_names)}
            places.append(np.array([of[name] for name in names], np.int64))
        elif size == new_size:
            places.append(np.arange(size))
        else:
            return None
    return places
