"""Reads the ratings of MovieLens 1M.

Harper and Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015. Its licence allows research only and no copies, so
whoever measures fetches it. The file is looked for in MINUTEHAND_DATA, else in the cache: the official archive
`ml-1m.zip`, or its table of ratings `ml-1m/ratings.dat` or `ml-1m/ratings.parquet`.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.csv as pv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import InputError
from streaming.sources.download import cache

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
SHA256 = "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"


class Ratings(NamedTuple):
    """One entry a rating: `user` and `movie` are places among the rated ones, from 0 on; `stars` are 1 to 5."""

    user: NDArray[np.int64]
    movie: NDArray[np.int64]
    stars: NDArray[np.int64]


def ratings() -> Ratings:
    """Reads all ratings. Raises InputError if there is no file, or if the archive is another one."""
    root = Path(os.environ.get("MINUTEHAND_DATA") or cache())
    packed, text, parquet = root / "ml-1m.zip", root / "ml-1m" / "ratings.dat", root / "ml-1m" / "ratings.parquet"
    if parquet.is_file():
        table = pq.read_table(parquet)
        return numbered(*(table[name].to_numpy().astype(np.int64) for name in ("user_id", "movie_id", "rating")))
    if text.is_file():
        return parsed(text.read_bytes())
    if not packed.is_file():
        raise InputError(f"MovieLens 1M is missing: fetch {URL} to {packed}, or set MINUTEHAND_DATA to its folder")
    content = packed.read_bytes()
    if (found := sha256(content)) != SHA256:
        raise InputError(f"{packed}: sha256 is {found}, allowed is {SHA256}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return parsed(archive.read("ml-1m/ratings.dat"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parsed(content: bytes) -> Ratings:
    """Parses ratings.dat: a line is `user::movie::stars::seconds`."""
    options = pv.ReadOptions(column_names=["user", "movie", "stars", "seconds"])
    table = pv.read_csv(io.BytesIO(content.replace(b"::", b",")), options)
    return numbered(*(table[name].to_numpy() for name in Ratings._fields))


def numbered(user: NDArray[np.int64], movie: NDArray[np.int64], stars: NDArray[np.int64]) -> Ratings:
    """Gives each user and each movie its place among the rated ones."""
    return Ratings(np.unique(user, return_inverse=True)[1], np.unique(movie, return_inverse=True)[1], stars)
