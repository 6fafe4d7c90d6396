"""Exposures: one judge for history and live, which agrees with the publisher, and names what is wrong in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage, plain
from streaming.declaration import INT64_MAX, INT64_MIN, Declaration, Feature
from streaming.example import from_exposures
from streaming.exposures import AT_ONCE, judged
from streaming.publisher import action, impression
from streaming.source import Exposure, load

START_MS = 1_700_000_000_000
DECLARATION = Declaration(
    "shop", (Feature("user", "id"), Feature("brands", "ids"), Feature("price", "number")), ("buy", "like"), "buy", 1000
)
GOOD = Exposure("i", 1, 2, START_MS, {"user": 1, "brands": [3], "price": 0.5}, {"buy": START_MS + 5})


def passed(*exposures: Exposure) -> list[Exposure]:
    return list(judged("history", lambda: exposures, DECLARATION))


def with_features(**features: Any) -> Exposure:
    return GOOD._replace(features={**GOOD.features, **features})


WRONG = {
    "impression 'i': user is 7.9, allowed is integer": with_features(user=7.9),
    "user is 7.0, allowed is integer": with_features(user=np.float64(7)),
    "user is '7', allowed is integer": with_features(user="7"),
    "user is 9007199254740992.0, allowed is integer": with_features(user=9007199254740993.0),
    "user is True, allowed is integer": with_features(user=np.bool_(True)),
    "user is None, allowed is integer": with_features(user=None),
    "user is 9223372036854775808, allowed is": with_features(user=np.uint64(2**63)),
    "user is -9223372036854775808, a reserved id": with_features(user=INT64_MIN),
    "price is nan, allowed is a number that is finite": with_features(price=float("nan")),
    "price is inf, allowed is a number that is finite": with_features(price=np.float32("inf")),
    "price is a number that is too long to print, allowed is": with_features(price=10**5000),
    "price is '1', allowed is number": with_features(price="1"),
    "price is Decimal('1'), allowed is number": with_features(price=Decimal(1)),
    "brands[1] is 1.5, allowed is integer": with_features(brands=[3, 1.5]),
    "brands[0] is 3.0, allowed is integer": with_features(brands=np.array([3.0])),
    "brands is {3}, allowed is array": with_features(brands={3}),
    "brands has 65 items, allowed are 64": with_features(brands=[1] * 65),
    "feature is 'pirce', allowed are user, brands, price": with_features(pirce=1.0),
    "outcome is 'bought', allowed are buy, like": GOOD._replace(outcomes={"bought": START_MS}),
    "outcome buy is at 1699999999999, allowed is": GOOD._replace(outcomes={"buy": START_MS - 1}),
    "ts_ms is 1700000000.5, allowed is integer": GOOD._replace(outcomes={"buy": 1700000000.5}),
    "outcomes is ['buy'], allowed is a dict": GOOD._replace(outcomes=["buy"]),
    "features is None, allowed is a dict": GOOD._replace(features=None),
    "ts_ms is 1700000000, allowed are milliseconds": GOOD._replace(ts_ms=1_700_000_000),
    "ts_ms is 1700000000000000, allowed is 0 to 253402300799999": GOOD._replace(ts_ms=START_MS * 1000),
    "ts_ms is 1700000000000.0, allowed is integer": GOOD._replace(ts_ms=float(START_MS)),
    "user_id is '1', allowed is integer": GOOD._replace(user_id="1"),
    "item_id is nan, allowed is integer": GOOD._replace(item_id=float("nan")),
    "impression 7: impression_id is 7, allowed is string": GOOD._replace(impression_id=7),
    "impression_id has 0 bytes, allowed are 1 to 128": GOOD._replace(impression_id=""),
    "which has no UTF-8": GOOD._replace(impression_id="\ud800"),
    "allowed is a streaming.source.Exposure": ("i", 1, 2),
}


@pytest.mark.parametrize(("message", "wrong"), WRONG.items(), ids=[str(k) for k in range(len(WRONG))])
@pytest.mark.parametrize("part", ["history", "live"])
def test_a_wrong_exposure_is_named_in_one_line(part: str, message: str, wrong: Any) -> None:
    before = [GOOD._replace(impression_id=f"i{k}") for k in range(3)]
    with pytest.raises(InputError) as e:
        list(judged(part, lambda: [*before, wrong], DECLARATION))
    assert message in str(e.value) and str(e.value).startswith(part) and "\n" not in str(e.value)


def test_the_line_names_part_impression_feature_value_and_what_is_allowed() -> None:
    with pytest.raises(InputError) as e:
        passed(with_features(price=float("nan")))
    assert str(e.value) == "history: impression 'i': price is nan, allowed is a number that is finite as a float32"


def test_numbers_of_numpy_and_pandas_and_tuples_mean_what_pythons_do() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"user": [1], "price": [0.5]})
    others = [
        GOOD._replace(user_id=np.int64(1), item_id=np.int32(2), ts_ms=np.int64(START_MS)),
        with_features(user=np.int32(1), brands=(np.int64(3),), price=np.float32(0.5)),
        with_features(user=np.uint8(1), brands=np.array([3]), price=np.float64(0.5)),
        with_features(user=frame["user"].iloc[0], brands=pd.Series([3]), price=frame["price"].iloc[0]),
        GOOD._replace(impression_id=np.str_("i"), outcomes={"buy": np.int64(START_MS + 5)}),
    ]
    with pytest.raises(InputError, match="price is <NA>, allowed is number"):
        passed(with_features(price=pd.NA))
    for other in others:
        assert passed(other) == [GOOD]
        assert json.dumps(passed(other)[0]) == json.dumps(GOOD)
    assert from_exposures(passed(others[1]), DECLARATION).features["brands"].values.tolist() == [3]


def test_features_may_be_absent_and_names_may_be_of_any_language() -> None:
    shown = [GOOD._replace(features={}), GOOD._replace(impression_id="größe-ß日本", features={"price": 1}, outcomes={})]
    assert passed(*shown) == shown


IDS: list[Any] = [0, -1, INT64_MAX, INT64_MAX + 1, INT64_MIN, INT64_MIN + 1, INT64_MIN + 2, 1.0, 2.5, "1", True, None]
NUMBERS: list[Any] = [*IDS, 3.4e38, 3.41e38, -3.41e38, 10**38, 10**39, float("nan"), float("-inf")]
LISTS: list[Any] = [[], [1], (1, 2), [1] * 64, [1] * 65, [[1]], [None], {"a": 1}, "12", [INT64_MIN], [1.0], [True]]
VALUES = [("user", v) for v in IDS] + [("price", v) for v in NUMBERS] + [("brands", v) for v in LISTS]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=[f"{name} {str(value)[:20]}" for name, value in VALUES])
def test_what_the_judge_passes_the_contract_passes_and_the_reverse(name: str, value: Any) -> None:
    """The whole columns, which are looked at first, hide nothing from the contract and refuse nothing of their own."""
    exposure, contract = with_features(**{name: value}), Contract(DECLARATION)
    event = impression("i", "", 1, 2, START_MS, 0, exposure.features, {})
    try:
        contract.read("impressions", json.dumps(event, default=plain).encode())
        allowed = True
    except BadMessage:
        allowed = False
    others = [with_features()._replace(impression_id=f"o{k}") for k in range(5)]
    try:
        passed(*others, exposure)
    except InputError:
        assert not allowed
    else:
        assert allowed
        contract.read("actions", json.dumps(action("i", "buy", exposure.outcomes["buy"])).encode())


def test_events_are_in_order_over_all_of_the_source() -> None:
    later = [GOOD._replace(impression_id=f"i{k}", ts_ms=START_MS + k // 3, outcomes={}) for k in range(3 * AT_ONCE)]
    assert passed(*later) == later
    for at in (1, AT_ONCE, 2 * AT_ONCE + 1):
        early = later[at]._replace(impression_id="early", ts_ms=START_MS - 1)
        with pytest.raises(InputError, match=f"'early': ts_ms is {START_MS - 1}, allowed is event order"):
            passed(*later[:at], early, *later[at:])


def test_an_impression_id_that_comes_again_is_named_however_far_it_is() -> None:
    many = [GOOD._replace(impression_id=f"i{k}") for k in range(3 * AT_ONCE)]
    for at in (7, AT_ONCE, 3 * AT_ONCE):
        with pytest.raises(InputError, match="history: impression 'i5': comes twice"):
            passed(*many[:at], many[5], *many[at:])


def test_nothing_is_read_ahead_of_a_few_and_a_source_may_be_empty() -> None:
    def endless() -> Iterator[Exposure]:
        k = 0
        while True:
            yield GOOD._replace(impression_id=str(k := k + 1))

    assert next(judged("live", endless, DECLARATION)).impression_id == "1"
    assert passed() == []


def test_a_source_that_is_loaded_is_judged(tmp_path: Any) -> None:
    (tmp_path / "shop.py").write_text(
        "from streaming.declaration import Declaration, Feature\nfrom streaming.source import Exposure\n"
        "declaration = Declaration('shop', (Feature('user', 'id'),), ('buy',), 'buy', 1000)\nextra = 7\n"
        f"def history(): yield Exposure('a', 1, 1, {START_MS}, {{'user': '7'}}, {{}})\nlive = history\n"
    )
    source = load(str(tmp_path / "shop.py"))
    for read in (source.history, source.live):
        with pytest.raises(InputError, match="impression 'a': user is '7', allowed is integer"):
            list(read())
    assert source.extra == 7  # type: ignore[attr-defined]
