"""Reads and writes <log>/PUBLISH, by which `serving.publish` asks trainer and syncs for a base (docs/delta.md).

The file names the wanted state, not an action. So each process may be killed and read it again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from common.disk import replace
from delta_log.log import Log
from delta_log.manifest import LogBroken

NAME = "PUBLISH"


@dataclass(frozen=True)
class Publication:
    """A request that every replica serves a base of `lineage` at `seq` or later, and none of the bases `refused`."""

    lineage: str
    seq: int
    refused: tuple[int, ...] = ()

    @classmethod
    def read(cls, log: Log) -> Publication | None:
        """Reads the newest request; None before the first."""
        path = log.path / NAME
        try:
            fields = json.loads(path.read_bytes())
            return cls(str(fields["lineage"]), int(fields["seq"]), tuple(int(s) for s in fields["refused"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as e:
            raise LogBroken(f"{path}: not a publication: {e}") from e

    def write(self, log: Log) -> None:
        replace(log.path / NAME, json.dumps(asdict(self)).encode() + b"\n")
