"""Rows of several sizes, so that memory goes to the ids that are seen often.

    sizes=author:4            rows of `author` have vectors of 4 numbers
    sizes=user:4@16           those of the users seen fewer than 16 times; the others have vectors of `dim` numbers

A short vector s of d numbers counts as s P, with a matrix P [d, dim] of its table that is learned and begins as
[identity | 0] (mixed dimensions, Ginart et al., 2019, arXiv 1909.11810). An id that is seen for the n-th time moves
from the table of short rows, `<table>_tail`, to that of long ones. There it begins with s P, so no score changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from training.models.model import COUNT, RowSegment, Tail

Segments = tuple[RowSegment, ...]


class Size(NamedTuple):
    """`dim`: numbers of a short vector. `after`: the sight at which an id gets a long one; 0: at none."""

    dim: int
    after: int


def parsed(text: str, model: str, tables: Sequence[str], dim: int) -> dict[str, Size]:
    """Reads table -> size from the setting. Raises ValueError for an unknown table and for a size that is none."""
    sizes: dict[str, Size] = {}
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(\w+):(\d+)(?:@(\d+))?", part)
        if match is None or match[1] not in tables or match[1] in sizes:
            allowed = f"allowed is TABLE:DIM or TABLE:DIM@SIGHTS, of each table once: {', '.join(tables)}"
            raise ValueError(f"model {model!r}: sizes has {part!r}, {allowed}")
        size = Size(int(match[2]), int(match[3] or 0))
        if not 1 <= size.dim < dim or match[3] and size.after < 1:
            raise ValueError(f"model {model!r}: sizes has {part!r}, allowed is 1 <= DIM < dim={dim} and SIGHTS >= 1")
        sizes[match[1]] = size
    return sizes


def stored(tables: Mapping[str, Segments], sizes: Mapping[str, Size]) -> tuple[dict[str, Segments], dict[str, Tail]]:
    """Returns the tables and the tails of a model whose rows are [linear | vector], from those of uniform size.

    Tails come last: a delta then adds a long row before it removes the short one.
    """
    whole, short, tails = dict(tables), {}, {}
    for table, size in sizes.items():
        linear, vector = tables[table]
        rows = linear, vector._replace(dim=size.dim)
        if size.after:
            tail = Tail(f"{table}_tail", size.after)
            if tail.table in tables:
                raise ValueError(f"sizes has table {table!r}, whose rare ids need the name {tail.table!r}: it is taken")
            whole[table], short[tail.table], tails[table] = (linear, vector, COUNT), (*rows, COUNT), tail
        else:
            whole[table] = rows
    return whole | short, tails


def joined(size: Size, short: Any, long: Any, projection: Any) -> Any:
    """Returns rows [linear | vector of dim]: the long one of an id that has one, else the short one, projected."""
    rows = tf.concat([short[:, :1], tf.matmul(short[:, 1 : 1 + size.dim], projection)], 1)
    return tf.where(long[:, -1:] > 0, long[:, :-1], rows) if size.after else rows
