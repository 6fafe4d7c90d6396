"""The profiles in Redis: the push writes each changed profile as one value, and readers of any machine merge it.

    replica = Replica(address, profiles, slots, ("now_ms",))    # beside the writer of the store
    replica.publish()                                           # after a commit
    store = RedisProfiles("redis://127.0.0.1:6379/0", slots)    # a reader: `read` and `noted` as of Profiles

    minutehand:profiles:user:7   -> version (16 digits) | CRC-32C | rows of all slots and ages, 24 bytes each (rows.py)
    minutehand:profiles          -> a hash: the store's id, version and slots, the newest compaction, and notes

A value is whole and never added to, so the same again is harmless. A script lets no older version overwrite a newer
one. The hash is written last: a reader sees at least what its notes tell, and none before the first copy is complete. A
Redis that has lost everything, or has come back with older values, has an older version than the store: all is written
again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from common import process
from common.errors import InputError
from features.profile import database
from features.profile.fold import READER_LAG_MS
from features.profile.query import Answer, Evaluation, Query, check_now, checked, spread
from features.profile.rows import Int64s, of_owners, seal, unsealed
from features.profile.store import Profiles
from features.profile.tombstones import ENTITIES
from streaming.slots import DAY_MS, Slots

PREFIX = "minutehand:profiles"
AT_ONCE, MOST, MOST_VERSIONS = 500, 20_000, 3600
"""Profiles of one call, profiles of one `publish`, and versions that wait before all profiles wait instead."""
WITHIN_S, RETRY_S = 5.0, 2.0
VERSION = "version"
_DIGITS = 16
NEWEST = """
local stored = redis.call('GETRANGE', KEYS[1], 0, 15)
if stored == '' or tonumber(stored) <= tonumber(string.sub(ARGV[1], 1, 16)) then
    if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1])
    else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
end
"""

log = process.logger("features")


class _Server:
    """A Redis server. Its errors are one line that names it, without a password."""

    def __init__(self, address: str) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        once = Retry(NoBackoff(), 1)  # a connection of the pool may be older than the server
        try:
            self.client: Any = redis.Redis.from_url(
                address, socket_timeout=WITHIN_S, socket_connect_timeout=WITHIN_S, retry=once
            )
        except ValueError:
            raise InputError("profiles is no address of Redis; allowed is redis://host:port/number") from None
        at = self.client.connection_pool.connection_kwargs
        self.name = f"redis://{at.get('host', 'localhost')}:{at.get('port', 6379)}/{at.get('db', 0)}"
        self._errors = redis.RedisError

    def ask(self, pipe: Any) -> list[Any]:
        """The answers of a pipeline."""
        try:
            answers: list[Any] = pipe.execute()
            return answers
        except self._errors as e:
            raise ConnectionError(f"{self.name} fails: {e}") from None


class Replica:
    """Keeps Redis equal to the store that `profiles` writes. `notes` are those that readers need."""

    def __init__(self, address: str, profiles: Profiles, declared: Slots, notes: Sequence[str]) -> None:
        self._server, self._profiles, self._declared, self._notes = _Server(address), profiles, declared, notes
        self._newest = self._server.client.register_script(NEWEST)
        self._retry_at, self._most_versions = 0.0, MOST_VERSIONS

    def publish(self) -> bool:
        """Writes what waits, or a part of it. Returns whether nothing waits any more.

        If Redis is away, the profiles wait for a later call. Raises InputError if Redis has those of another store.
        """
        if time.monotonic() < self._retry_at:
            return False
        try:
            return self._publish()
        except ConnectionError as e:
            log.warning("%s; profiles wait for it", e)
            self._retry_at = time.monotonic() + RETRY_S
            return False

    def _publish(self) -> bool:
        own, published = self._profiles.store_id(), self._profiles.published
        ((held, version),) = self._server.ask(self._pipe().hmget(PREFIX, "store", VERSION))
        if held not in (None, own):
            allowed = "an empty one, such as of another number"
            raise InputError(f"{self._server.name} holds the profiles of another store; allowed is {allowed}")
        waiting = self._profiles.waiting(MOST)
        if held is None or int(version) < published or waiting.more > self._most_versions:
            self._profiles.all_wait()
            self._server.ask(self._pipe().hset(PREFIX, mapping={"store": own, VERSION: published}))
            waiting = self._profiles.waiting(MOST)
            self._most_versions = waiting.more + MOST_VERSIONS
        for number in range(len(ENTITIES)):
            ids = waiting.profile[waiting.entity == number]
            for first in range(0, len(ids), AT_ONCE):
                self._write(number, ids[first : first + AT_ONCE], waiting.version)
        state = {VERSION: b"%d" % waiting.version} | ({} if waiting.more else self._state())
        self._server.ask(self._pipe().hset(PREFIX, mapping=state))
        self._profiles.published = waiting.version
        return not waiting.more

    def _pipe(self) -> Any:
        return self._server.client.pipeline(transaction=False)

    def _write(self, entity: int, ids: Int64s, version: int) -> None:
        rows = self._profiles.rows_of(entity, ids)
        order = np.argsort(rows.owner, kind="stable")
        data = memoryview(np.stack(rows[1:], 1)[order].tobytes())
        ends = np.searchsorted(rows.owner[order], np.arange(len(ids) + 1))
        keep_ms = kept_ms(self._declared, ENTITIES[entity])
        with self._pipe() as pipe:
            for profile, begin, end in zip(ids.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                blob = seal(data[24 * begin : 24 * end]) if begin < end else b""
                expires = keep_ms if begin < end else DAY_MS
                self._newest([_key(entity, profile)], [b"%016d%b" % (version, blob), expires], client=pipe)
            self._server.ask(pipe)

    def _state(self) -> dict[str, bytes]:
        """What readers need beside the profiles. Without it they refuse to read."""
        notes = {database.USER + name: self._profiles.noted(name) for name in self._notes}
        compacted = b"%d" % self._profiles.compacted_ms()
        state = {"slots": self._declared.to_json().encode(), database.COMPACTED: compacted}
        return state | {name: data for name, data in notes.items() if data is not None}


class RedisProfiles:
    """Reads the profiles that a Replica writes. Its methods may be called from any thread.

    Raises InputError as Profiles does, and ConnectionError if Redis does not answer.
    """

    def __init__(self, address: str, declared: Slots) -> None:
        self._server, self._declared = _Server(address), declared

    def noted(self, name: str) -> bytes | None:
        """What the last commit that Redis has noted under the name."""
        data: bytes | None = self._server.ask(self._server.client.pipeline(False).hget(PREFIX, database.USER + name))[0]
        return data

    def read(self, entity: str, profiles: Sequence[int], queries: Sequence[Query], now_ms: int) -> list[Answer]:
        """As `Profiles.read`. It may see a part of a commit that comes after the notes."""
        if entity not in ENTITIES:
            raise InputError(f"entity is {entity!r}; allowed is user or item")
        plans = [checked(query, self._declared, entity) for query in queries]
        check_now(now_ms)
        ids, owners = np.unique(np.asarray(profiles, np.int64), return_inverse=True)
        pipe = self._server.client.pipeline(False).hmget(PREFIX, "slots", database.COMPACTED)
        keys = [_key(ENTITIES.index(entity), profile) for profile in ids.tolist()]
        (stored, compacted), *values = self._server.ask(pipe.mget(keys) if keys else pipe)
        self._check(stored, compacted, now_ms)
        named = zip(ids.tolist(), values[0] if values else [], strict=True)
        rows = of_owners(
            (owner, unsealed(value[_DIGITS:], f"{self._server.name}: {entity} {profile}"))
            for owner, (profile, value) in enumerate(named)
            if value is not None and len(value) > _DIGITS
        )
        evaluation = Evaluation(rows, len(ids), len(self._declared.actions), now_ms)
        return [spread(evaluation.answer(plan), owners) for plan in plans]

    def _check(self, stored: bytes | None, compacted: bytes | None, now_ms: int) -> None:
        if stored is None or compacted is None:
            raise InputError(f"{self._server.name} holds no profiles yet: the feature push writes them")
        if refused := _refusal(stored, self._declared):
            raise InputError(f"{self._server.name}: {refused}; allowed are new slots and new actions at the end")
        first_ms = int(compacted) - READER_LAG_MS
        if now_ms < first_ms:
            allowed = f"{first_ms} or later, since older slices are merged"
            raise InputError(f"{self._server.name}: now_ms is {now_ms}; allowed is {allowed}")

    def close(self) -> None:
        self._server.client.close()


@lru_cache(maxsize=8)
def _refusal(stored: bytes, declared: Slots) -> str:
    """Why slots do not fit those of the store; "" if one of them has grown from the other."""
    older = Slots.from_json(stored.decode())
    return database.changes(declared, older) and database.changes(older, declared)


def kept_ms(declared: Slots, entity: str) -> int:
    """How long a value of a profile that does not change is kept; 0: for ever."""
    of_entity = [slot for slot in declared.slots if slot.entity == entity]
    if any("all" in slot.windows for slot in of_entity):
        return 0
    return max((slot.keep_ms for slot in of_entity), default=0) + DAY_MS


def _key(entity: int, profile: int) -> str:
    return f"{PREFIX}:{ENTITIES[entity]}:{profile}"
