"""KuaiRand-Pure's files: where they are, and how their tables are read. What they mean is kuairand.py's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streaming.sources.download import Archive, NoConnection, fetch

ARCHIVE = Archive(
    name="kuairand-pure",
    url="https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
    md5="0820331067a3784d9691136f772b35a7",
    members=(
        "log_standard_4_08_to_4_21_pure.csv",
        "log_standard_4_22_to_5_08_pure.csv",
        "user_features_pure.csv",
        "video_features_basic_pure.csv",
    ),
    licence="CC BY-SA 4.0",
    citation='Gao et al., "KuaiRand", CIKM 2022, https://kuairand.com',
)
_NAMES = ("log_standard_*_pure", "user_features_pure", "video_features_basic_pure")


def folder() -> Path:
    """Where the files are: MINUTEHAND_DATA if it is set, else the cache, after a download if need be."""
    given = os.environ.get("MINUTEHAND_DATA")
    try:
        return Path(given) if given else fetch(ARCHIVE)
    except NoConnection as e:
        raise NoConnection(f"{e}; MINUTEHAND_DATA may name a folder that has the files") from e


def find(root: Path) -> list[list[Path]]:
    """The files of the log, the users and the videos under a folder; the log may be in several parts.

    Raises FileNotFoundError that names what is missing.
    """
    folders = [root, root / "kuairand-pure", root / "KuaiRand-Pure" / "data", root / "data"]
    for place in folders:
        found = []
        for name in _NAMES:
            # One form of a file only: the same rows would count twice.
            forms = (sorted(place.glob(name + form)) for form in (".parquet", ".csv", ".csv.gz"))
            found.append(next(filter(None, forms), []))
        if all(found):
            return found
        if any(found):
            missing = [name for name, paths in zip(_NAMES, found, strict=True) if not paths]
            raise FileNotFoundError(f"{place}: missing is {', '.join(missing)} (.parquet, .csv or .csv.gz)")
    raise FileNotFoundError(f"MINUTEHAND_DATA is {str(root)!r}: neither it nor its kuairand-pure/ holds {_NAMES[0]}")


def places(ids: NDArray[np.int64], table: pa.Table, key: str) -> NDArray[np.int64]:
    """The place of each id in a table's key column; -1, the last place of what is looked up there, if it has none."""
    keys = integers(table, key)
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], ids)
    found = order[np.minimum(place, len(keys) - 1)]
    return np.where(keys[found] == ids, found, -1)


def integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    column = table[name]
    return np.asarray(pc.fill_null(column, 0).to_numpy()).astype(np.int64)


def read_tables(paths: Sequence[Path], needed: Sequence[str]) -> pa.Table:
    tables = []
    for path in paths:
        try:
            reader = pq.read_table if path.suffix == ".parquet" else pv.read_csv
            table = reader(path)
        except (pa.ArrowException, OSError) as e:
            raise ValueError(f"{path}: cannot be read ({e})") from e
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise ValueError(f"{path}: has no column {', '.join(missing)}")
        tables.append(table.select(list(needed)))
    table = pa.concat_tables(tables, promote_options="permissive")
    if table.num_rows == 0:
        raise ValueError(f"{paths[0]}: has no row")
    return table
