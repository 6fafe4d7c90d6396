"""Policies: refused by the field's name, and no part of what a declaration means to others."""

import json
from dataclasses import replace

import pytest

from streaming.declaration import Declaration, Feature, Policy

PLAIN = Declaration("d", (Feature("a", "ids"), Feature("b", "id"), Feature("c", "number")), ("x",), "x", 5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"admit_after": 0}, "admit_after is 0, allowed is an int, 1 to 255"),
        ({"admit_after": 256}, "admit_after is 256, allowed is an int, 1 to 255"),
        ({"admit_after": 2.0}, "admit_after is 2.0, allowed is an int"),
        ({"admit_after": True}, "admit_after is True, allowed is an int"),
        ({"admit_after": None}, "admit_after is None, allowed is an int"),
        ({"admit_probability": 0}, "admit_probability is 0, allowed is a number > 0 and <= 1"),
        ({"admit_probability": 1.5}, "admit_probability is 1.5, allowed is a number > 0"),
        ({"admit_probability": float("nan")}, "admit_probability is nan"),
        ({"admit_probability": "half"}, "admit_probability is 'half'"),
        ({"admit_after": 3, "admit_probability": 0.5}, "admit_after is 3 and admit_probability is 0.5: allowed is one"),
        ({"expire_ms": 0}, "expire_ms is 0, allowed is an int, None or 1 or more"),
        ({"expire_ms": 1e9}, "expire_ms is 1000000000.0, allowed is an int"),
        ({"pending_ids": 0}, "pending_ids is 0, allowed is an int, 1 to 4294967296"),
    ],
)
def test_a_wrong_policy_names_its_field_and_what_is_allowed(fields, said):
    with pytest.raises(ValueError) as e:
        Policy("a", **fields)
    assert "policy of table 'a': " in str(e.value) and said in str(e.value)


def test_a_policy_is_of_a_table_and_the_only_one():
    with pytest.raises(ValueError, match="a policy's table is 'c', allowed are a, b"):
        replace(PLAIN, policies=(Policy("c"),))
    with pytest.raises(ValueError, match="a policy of table 'a' is declared twice"):
        replace(PLAIN, policies=(Policy("a"), Policy("a", admit_after=2)))


def test_policies_are_the_trainers_alone():
    strict = replace(PLAIN, policies=(Policy("b", admit_after=255, expire_ms=1), Policy("a", admit_probability=0.5)))
    assert strict.policy("b").expire_ms == 1 and PLAIN.policy("b") == Policy("b")
    assert strict.sha256 == PLAIN.sha256 and "policies" not in json.loads(strict.to_json())
    assert Declaration.from_json(strict.to_json()) == PLAIN
