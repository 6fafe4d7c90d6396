"""The archive's rows: reading by column finds the same in each message as reading one by one, good or damaged."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from streaming.archive import rows
from streaming.archive.quick import Quick
from streaming.archive.rows import Decoder
from streaming.event_time import EventTime
from streaming.topics import ACTIONS, IMPRESSIONS
from tests.streaming.contract.test_quick import GOOD, PIECES
from tests.support.events import CASES, DECLARATION

LIVE, REPLAY = EventTime(), EventTime(1000, "our lease")
BEAT = b'{"heartbeat_ms":77,"lease":"our lease"}'


def records(messages: list[bytes]) -> list[Any]:
    return [SimpleNamespace(value=m, timestamp=1000 + k, offset=3 * k) for k, m in enumerate(messages)]


def found(decoder: Decoder, topic: str, messages: list[bytes]) -> tuple[Any, ...]:
    decoded = decoder.rows(topic, 1, records(messages))
    return decoded.table.sort_by("offset").to_pylist(), decoded.beats, sorted(decoded.bad)


@pytest.mark.parametrize("event_time", (LIVE, REPLAY), ids=("live", "replay"))
def test_they_agree_on_the_table_and_on_damaged_messages(
    event_time: EventTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, draw = Decoder(DECLARATION, event_time), random.Random(7)
    read, kept = Quick.table, []
    monkeypatch.setattr(rows, "FEW", 1)
    monkeypatch.setattr(Quick, "table", lambda self, m: (t := read(self, m)) is not None and kept.append(len(m)) or t)
    for turn in range(40):
        topic = draw.choice((IMPRESSIONS, ACTIONS))
        good = [case.message for case in GOOD if case.topic == topic]
        messages = [draw.choice(good) for _ in range(40)] + [BEAT] * draw.randrange(2)
        for _ in range(draw.randrange(6)):
            place = draw.randrange(len(messages))
            at, cut = draw.randrange(len(messages[place]) + 1), draw.randrange(3)
            messages[place] = messages[place][:at] + draw.choice([b"", *PIECES]) + messages[place][at + cut :]
        if turn < 2:
            messages = [case.message for case in CASES if case.topic == topic and case.message is not None]
        with pytest.MonkeyPatch.context() as slow:
            slow.setattr(rows, "FEW", 10_000)
            expected = found(decoder, topic, messages)
        assert found(decoder, topic, messages) == expected
    assert sum(kept) > 150


def test_good_messages_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(DECLARATION, LIVE)
    monkeypatch.setattr(decoder, "_contract", None)
    plain = b'{"impression_id":"i%d","action":"%s","ts_ms":5,"value":2}'
    messages = [plain % (k, DECLARATION.tasks[0].encode()) for k in range(100)]
    assert len(found(decoder, ACTIONS, messages)[0]) == 100
