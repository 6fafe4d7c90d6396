"""The quick judge agrees with the contract's own parser and rules: on the table's messages, and on damaged ones."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from streaming.contract import contract
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage
from tests.support.events import CASES, DECLARATION

GOOD = [case for case in CASES if not case.kind and "heartbeat" not in case.name]
PIECES = [
    b'"',
    b":",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"1e999",
    b"0" * 70,
    b"-",
    b"NaN",
    b"1.0",
    b"null",
    b"\xff",
    b'"ts_ms":1',
]


@pytest.fixture(scope="module")
def both() -> tuple[Contract, Contract]:
    """The contract as it is, and without its quick judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "Quick", lambda schema: SimpleNamespace(event=lambda message: None))
        slow = Contract(DECLARATION)
    return Contract(DECLARATION), slow


def judged(judge: Contract, topic: str, message: bytes) -> object:
    try:
        return judge.read(topic, message)
    except BadMessage as e:
        return e.kind, str(e)


def test_they_agree_on_damaged_messages(both: tuple[Contract, Contract]) -> None:
    draw, accepted = random.Random(5), 0
    for _ in range(6000):
        case = draw.choice(GOOD)
        at = draw.randrange(len(case.message) + 1)
        cut = draw.randrange(3)
        message = case.message[:at] + draw.choice([b"", *PIECES]) + case.message[at + cut :]
        found = [judged(judge, case.topic, message) for judge in both]
        assert found[0] == found[1], message
        accepted += isinstance(found[0], dict)
    assert accepted > 300


def test_most_good_messages_need_no_other_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, slow = Contract(DECLARATION), []
    parse = contract.parsed
    monkeypatch.setattr(contract, "parsed", lambda message: slow.append(message) or parse(message))
    good = [case for case in GOOD if case.topic in ("impressions", "actions")]
    for case in good:
        judge.read(case.topic, case.message)
    assert len(slow) < len(good) / 2
