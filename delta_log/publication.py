"""What `serving.publish` asks of the trainer and of every sync: <log>/PUBLISH, replaced by rename (docs/delta.md).

It says which state is wanted, not what to do, so each may be killed and look again.
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
    """A base of `lineage` at `seq` or later is wanted in every replica; the bases of `refused` are not wanted there."""

    lineage: str
    seq: int
    refused: tuple[int, ...] = ()

    @classmethod
    def read(cls, log: Log) -> Publication | None:
        """The newest, None before the first."""
        path = log.path / NAME
        try:
            found = json.loads(path.read_bytes())
            return cls(str(found["lineage"]), int(found["seq"]), tuple(int(s) for s in found["refused"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as e:
            raise LogBroken(f"{path}: not a publication: {e}") from e

    def write(self, log: Log) -> None:
        replace(log.path / NAME, json.dumps(asdict(self)).encode() + b"\n")
