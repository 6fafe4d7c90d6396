"""A shop as a source with views of its own: batch tables, a cross, counts as features, a list with the request."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from streaming.declaration import Declaration, Feature
from streaming.source import Exposure
from streaming.views import Column, Rows, Views

START_MS, STEP_MS = 1_700_000_000_000, 2_000
SHOPPERS, PRODUCTS = 6, 15

declaration = Declaration(
    name="shop",
    features=(
        Feature("shopper", "id", view="user"),
        Feature("product", "id", view="item"),
        Feature("city", "id", view="profile", default=-1),
        Feature("brands", "ids", view="video"),
        Feature("city_brands", "ids", view="derived"),
        Feature("item_seen", "number", view="derived"),
        Feature("item_hot", "number", view="derived"),
        Feature("user_seen", "number", view="derived"),
        Feature("search", "ids", view="request"),
        Feature("page", "id", view="request"),
    ),
    tasks=("buy",),
    judged="buy",
    window_ms=60_000,
)


def derive(rows: Rows) -> dict[str, list[Any]]:
    pairs = zip(rows["city"], rows["brands"], strict=True)
    return {
        "city_brands": [[1000 * (city or 0) + brand for brand in brands or []] for city, brands in pairs],
        "item_seen": [float(n or 0) for n in rows["item_shown_all"]],
        "item_hot": [float(n or 0) for n in rows["item_buy_1h"]],
        "user_seen": [float(n or 0) for n in rows["user_shown_all"]],
    }


def users() -> pa.Table:
    shoppers = range(SHOPPERS)
    return pa.table({"shopper": shoppers, "ts_ms": [START_MS] * SHOPPERS, "city": [k % 3 for k in shoppers]})


def items() -> pa.Table:
    products = range(PRODUCTS)
    brands = [[k, k + 1][: k % 3] for k in products]
    return pa.table({"product": products, "ts_ms": [START_MS] * PRODUCTS, "brands": brands, "price": [1.5] * PRODUCTS})


views = Views(
    video=(Column("price", "number"),),
    users=users,
    items=items,
    derive=derive,
    inputs=("item_shown_all", "item_buy_1h", "user_shown_all"),
)


def history() -> Iterator[Exposure]:
    yield from _exposures(0, 100)


def live() -> Iterator[Exposure]:
    yield from _exposures(100, 400)


def _exposures(first: int, last: int) -> Iterator[Exposure]:
    for k in range(first, last):
        draw, ts_ms = random.Random(k), START_MS + k * STEP_MS
        outcomes = {"buy": ts_ms + draw.randrange(50_000)} if draw.random() < 0.4 else {}
        features = {"search": [draw.randrange(5)] * (k % 3), "page": k % 4}
        yield Exposure(f"s{k}", draw.randrange(SHOPPERS), draw.randrange(PRODUCTS), ts_ms, features, outcomes)
