"""Sources by name, with their parameters; and the errors of a wrong one."""

import sys

import pytest

from streaming.declaration import Declaration, Feature
from streaming.source import load


def test_parameters_take_the_type_of_their_default():
    source = load("simulator?seed=7&minutes=3&drift=2.5")
    assert (source.seed, source.minutes, source.drift) == (7, 3, 2.5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simulatr", "allowed are kuairand, simulator"),
        ("no.such.module", "allowed are kuairand, simulator"),
        ("/no/such/file.py", "no such file"),
        ("simulator?speed=3", "'speed=3' is no parameter, allowed are seed=, minutes="),
        ("simulator?seed", "'seed' is no parameter"),
        ("simulator?minutes=ten", "minutes is 'ten', allowed is a value of type int"),
        ("simulator?rate=0", "rate is 0.0, allowed is > 0"),
        ("simulator?late=2", "late is 2.0, allowed is 0 to 1"),
        ("kuairand?days=0", "days is 0, allowed is >= 1"),
        ("download", "has no `declaration`"),
        ("download?x=1", "takes no parameters"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(name, said):
    with pytest.raises(ValueError) as e:
        load(name)
    assert said in str(e.value)


def test_a_file_without_live_is_refused_and_its_own_import_error_speaks(tmp_path):
    half = tmp_path / "half.py"
    half.write_text("from streaming.sources.simulator import declaration\ndef history(): return iter(())\n")
    with pytest.raises(ValueError, match="has no `live"):
        load(str(half))
    (tmp_path / "broken_source.py").write_text("import no_such_thing_at_all\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
            load("broken_source.__name__".partition(".__")[0] + ".x")
    finally:
        sys.path.remove(str(tmp_path))


def test_a_declaration_survives_json():
    d = Declaration("d", (Feature("a", "ids", default=(1, 2)), Feature("b", "number")), ("x",), "x", 5)
    assert Declaration.from_json(d.to_json()) == d and Declaration.from_json(d.to_json()).sha256 == d.sha256
