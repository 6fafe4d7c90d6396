"""Declarations and policies: refused by the field's name; policies are no part of what a declaration means."""

import json
from dataclasses import replace

import numpy as np
import pytest

from streaming.declaration import Declaration, Feature, Online, Policy

PLAIN = Declaration("d", (Feature("a", "ids"), Feature("b", "id"), Feature("c", "number")), ("x",), "x", 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({"name": name}, f"a feature's name is '{name}', allowed is") for name in ("class", "from", "self")),
        *(
            ({"name": name}, f"a feature's name is '{name}', allowed is")
            for name in ("_price", "größe", "a b", "", "1a")
        ),
        ({"name": "x" * 65}, "allowed is a letter of a to z or A to Z, then up to 63 letters, digits and underscores"),
        *(
            ({"table": table}, f"feature f: table is '{table}'")
            for table in ("brand-ids", "brand ids", "a/b", "märkte")
        ),
        ({"default": "0"}, "feature f: default is '0', allowed is integer"),
        ({"default": True}, "feature f: default is True, allowed is integer"),
        ({"default": 2**63}, "feature f: default is 9223372036854775808, allowed is"),
        ({"default": -(2**63)}, "default is -9223372036854775808, a reserved id"),
        ({"kind": "number", "default": float("nan")}, "feature f: default is nan, allowed is a number that is finite"),
        ({"kind": "number", "default": "0"}, "feature f: default is '0', allowed is number"),
        ({"kind": "ids", "default": 7}, "feature f: default is 7, allowed is array"),
        ({"kind": "ids", "default": ("7",)}, "feature f: default[0] is '7', allowed is integer"),
    ],
)
def test_a_wrong_feature_names_its_field_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError) as e:
        Feature(**{"name": "f", "kind": "id", **fields})
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ()}, "declaration d: no feature is of kind id or ids, allowed is one or more"),
        ({"features": (Feature("a", "number"),)}, "declaration d: no feature is of kind id or ids, allowed is one"),
        ({"features": (Feature("a", "id"), Feature("A", "id"))}, "feature is 'A' beside 'a', allowed are names that"),
        ({"features": (Feature("a", "id", "t"), Feature("b", "id", "T"))}, "table is 'T' beside 't', allowed are"),
        ({"tasks": ("x", "X")}, "task is 'X' beside 'x', allowed are"),
        ({"features": Feature("a", "id")}, "allowed is a tuple of Feature"),
        ({"tasks": "x"}, "declaration d: tasks is 'x', allowed is a tuple of str"),
        ({"tasks": ("x", "märkte")}, "declaration d: a task is 'märkte', allowed is a letter"),
        ({"tasks": ("x", "seq")}, "a task is 'seq', allowed is a name no answer has"),
        ({"tasks": tuple(f"x{k}" for k in range(65)), "judged": "x0"}, "65 tasks, allowed are up to 64"),
        ({"judged": "y"}, "judged is 'y', allowed are x"),
        ({"window_ms": 60e3}, "window_ms is 60000.0, allowed is a whole number, 1 to 31622400000"),
        ({"window_ms": 0}, "window_ms is 0, allowed is"),
        ({"window_ms": True}, "window_ms is True, allowed is"),
        ({"window_ms": 367 * 86_400_000}, "window_ms is 31708800000, allowed is"),
    ],
)
def test_a_wrong_declaration_names_its_field_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError) as e:
        replace(PLAIN, **fields)
    assert message in str(e.value)


def test_lists_and_numbers_of_numpy_mean_the_same_as_tuples_and_pythons():
    numbers = Feature("a", "ids", default=np.array([1, 2])), Feature("b", "id", default=np.int32(3))
    plain = Feature("a", "ids", default=(1, 2)), Feature("b", "id", default=3)
    one = Declaration("d", list(numbers), ["x", "y"], "x", np.int64(5))
    assert one == Declaration("d", plain, ("x", "y"), "x", 5) and Declaration.from_json(one.to_json()) == one
    assert hash(one) == hash(Declaration("d", plain, ("x", "y"), "x", 5))


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dense_rate": -0.1}, "online: dense_rate is -0.1, allowed is a number, 0 or more"),
        ({"dense_rate": float("nan")}, "online: dense_rate is nan, allowed is a number, 0 or more"),
        ({"dense_every": 0}, "online: dense_every is 0, allowed is an int, 1 or more"),
        ({"dense_every": True}, "online: dense_every is True, allowed is an int, 1 or more"),
    ],
)
def test_a_wrong_pace_of_dense_weights_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Online(**wrong)


def test_the_pace_of_dense_weights_is_no_part_of_a_lineage() -> None:
    declared = replace(PLAIN, online=Online(dense_rate=0.1, dense_every=5))
    assert declared.sha256 == PLAIN.sha256 and Declaration.from_json(declared.to_json()).online == Online()
