"""What the join must come to, computed offline: SQL (DuckDB) over the log of what was sent.

It shares nothing with the join: no Kafka, no Java, not the project's hashing; they only have docs/example.md in common.
The log says for each event what the sender knew: `w_ms`, a time the join was *seen* to have passed before the event was
sent. An event the sender knows to be late is late for certain; others are within the disorder and are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

BEFORE_ALL = -(2**63)
MASK = 2**64 - 1


def fnv1a64(data: bytes) -> int:
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & MASK
    return state


def mix64(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def draw(salt: str, impression_id: str) -> float:
    return (mix64(fnv1a64(f"{salt}:{impression_id}".encode())) >> 11) / 2**53


def term(impression_id: str, task: int, label: int) -> int:
    """What one learned pair adds to the sum."""
    return mix64(fnv1a64(impression_id.encode()) ^ mix64(2 * task + label + 1))


@dataclass(frozen=True)
class Expected:
    """Pairs are (impression_id, place of the task, label); the others are places in the log's `seq`."""

    pairs: set[tuple[str, int, int]]
    sampled_out: set[tuple[str, int]]
    late: set[int]
    dead: set[int]
    duplicates: int

    @property
    def learned(self) -> tuple[int, int]:
        """Count and sum of what is learned, as the committed state of training has it."""
        return len(self.pairs), sum(term(*pair) for pair in self.pairs) & MASK


# An impression is the first of its id that event time had not passed. Copies are duplicates until its window closes.
IMPRESSIONS = """
create table shown as
select impression_id, min_by(ts_ms, seq) as ts_ms, min(seq) as seq
from impressions where ts_ms > w_ms group by impression_id;

create table judged_impressions as
select i.seq, case
    when s.seq = i.seq then 'first'
    when s.seq is null or i.w_ms >= s.ts_ms + $window or i.seq < s.seq then 'late'
    else 'duplicate' end as verdict
from impressions i left join shown s using (impression_id);
"""
# An action meets its impression, before or after it was sent, if event time had passed neither the window nor, waiting
# for the impression, the action's own time.
ACTIONS = """
create table judged_actions as
with met as (
    select a.*, s.ts_ms as shown_ms, case
        when s.seq is null or a.w_ms >= s.ts_ms + $window then 'late'
        when a.seq < s.seq and a.w_ms >= a.ts_ms then 'late'
        when a.ts_ms < s.ts_ms then 'dead'
        when a.ts_ms > s.ts_ms + $window then 'late'
        else 'counts' end as verdict
    from actions a left join shown s using (impression_id))
select seq, impression_id, action, case
    when verdict = 'counts' and row_number() over (partition by impression_id, action, verdict order by seq) > 1
    then 'duplicate' else verdict end as verdict
from met;
"""
NEGATIVES = """
select s.impression_id, t.task, d.u < $pi as kept
from shown s cross join tasks t join draws d using (impression_id)
anti join (select impression_id, action as name from judged_actions where verdict = 'counts') p
    on p.impression_id = s.impression_id and p.name = t.name
"""


def join(
    impressions: pa.Table, actions: pa.Table, *, tasks: Sequence[str], window_ms: int, pi: float, salt: str
) -> Expected:
    """The outcome of a log: `impressions` has impression_id, ts_ms, `actions` also action; both seq and w_ms.

    `seq` is the order of sending over both tables; `w_ms` may be left out where nothing is known to be late.
    """
    con = duckdb.connect()
    for name, table in (("impressions", impressions), ("actions", actions)):
        if "w_ms" not in table.column_names:
            table = table.append_column("w_ms", pa.repeat(pa.scalar(BEFORE_ALL, pa.int64()), len(table)))
        con.register(f"{name}_log", table)
        con.execute(f"create table {name} as select * from {name}_log")
    con.register("tasks", pa.table({"task": list(range(len(tasks))), "name": list(tasks)}))
    for sql in (IMPRESSIONS, ACTIONS):
        for statement in filter(str.strip, sql.split(";")):
            con.execute(statement, {"window": window_ms} if "$window" in statement else None)
    ids = [row[0] for row in con.execute("select impression_id from shown").fetchall()]
    con.register("draws", pa.table({"impression_id": pa.array(ids, pa.string()), "u": [draw(salt, i) for i in ids]}))

    negatives = con.execute(NEGATIVES, {"pi": pi}).fetchall()
    positives = con.execute(
        "select impression_id, task from judged_actions join tasks on action = name where verdict = 'counts'"
    ).fetchall()
    verdicts = con.execute(
        "select seq, verdict from judged_impressions union all select seq, verdict from judged_actions"
    ).fetchall()
    return Expected(
        pairs={(i, t, 1) for i, t in positives} | {(i, t, 0) for i, t, kept in negatives if kept},
        sampled_out={(i, t) for i, t, kept in negatives if not kept},
        late={seq for seq, verdict in verdicts if verdict == "late"},
        dead={seq for seq, verdict in verdicts if verdict == "dead"},
        duplicates=sum(verdict == "duplicate" for _, verdict in verdicts),
    )
