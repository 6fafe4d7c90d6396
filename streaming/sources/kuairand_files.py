"""Finds and reads the files of KuaiRand-Pure. kuairand.py says what their columns mean."""

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

from streaming.sources.download import Archive, NoConnection, check, fetch

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
    """Returns the folder of the files: MINUTEHAND_DATA if it is set, else the cache, after a download if needed."""
    data = os.environ.get("MINUTEHAND_DATA")
    try:
        return Path(data) if data else fetch(ARCHIVE)
    except NoConnection as e:
        raise NoConnection(f"{e}; MINUTEHAND_DATA may name a folder that has the files") from e


def find(root: Path) -> list[list[Path]]:
    """Finds the files of the log, the users and the videos under a folder. The log may be in several parts.

    Raises FileNotFoundError, which names what is missing.
    """
    folders = [root, root / "kuairand-pure", root / "KuaiRand-Pure" / "data", root / "data"]
    for place in folders:
        files = []
        for name in _NAMES:
            # Takes one form of a file only, because the same rows would count twice.
            forms = (sorted(place.glob(name + form)) for form in (".parquet", ".csv", ".csv.gz"))
            files.append(next(filter(None, forms), []))
        if all(files):
            return files
        if any(files):
            missing = [name for name, paths in zip(_NAMES, files, strict=True) if not paths]
            raise FileNotFoundError(f"{place}: missing is {', '.join(missing)} (.parquet, .csv or .csv.gz)")
    raise FileNotFoundError(f"MINUTEHAND_DATA is {str(root)!r}: neither it nor its kuairand-pure/ holds {_NAMES[0]}")


def places(ids: NDArray[np.int64], table: pa.Table, key: str) -> NDArray[np.int64]:
    """Finds the row of each id in a table's key column; -1, the last place of a lookup list, if there is none."""
    keys = integers(table, key)
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], ids)
    rows = order[np.minimum(place, len(keys) - 1)]
    return np.where(keys[rows] == ids, rows, -1)


def integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Reads a column as int64; null reads 0."""
    column = table[name]
    return np.asarray(pc.fill_null(column, 0).to_numpy()).astype(np.int64)


def read_tables(paths: Sequence[Path], needed: Sequence[str]) -> pa.Table:
    """Reads the `needed` columns of files as one table. Raises ValueError, which names the file."""
    check(paths)
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
