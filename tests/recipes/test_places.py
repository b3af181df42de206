"""YAML as plain data, with lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from flowstill.recipes.places import read_yaml


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: [1, -2, 3.5, true, null, ~, 'x', \"y\", 1_000, .inf]}\nc: |\n  two\n  lines\n",
        "base: &b {x: 1, y: {z: [1, 2]}}\none: *b\ntwo:\n  - *b\n  - {<<: *b, x: 2}\n  - <<: [{q: 1, x: 9}, *b]\n",
        "{0: 0.1, 32000: 0.01, true: x, 1.5: y}",
        "- &a 1\n- *a\n- &c [*a, {k: *a}]\n- *c\n",
    ],
)
def test_yaml_is_read_as_pyyaml_reads_it(text: str) -> None:
    document = read_yaml(text, "f")
    assert document.data == yaml.safe_load(text)
    assert not document.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("2e+3", 2000.0),
        ("yes", "yes"),
        ("off", "off"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("True", True),
        ("", None),
        (".5", 0.5),
        ("-7", -7),
        ("1e", "1e"),
        ("e3", "e3"),
    ],
)
def test_unquoted_text_is_a_number_only_where_it_looks_like_one(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}", "f").data["a"]
    assert (read, type(read)) == (value, type(value))


def test_every_key_and_item_has_its_line() -> None:
    text = "a: 1\nb:\n  c: {d: 2,\n    e: 3}\n  f:\n    - 4\n    - g: 5\n"
    document = read_yaml(text, "f")
    lines = {path: place.line for path, place in document.places.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", "d"): 3,
        ("b", "c", "e"): 4,
        ("b", "f"): 5,
        ("b", "f", 0): 6,
        ("b", "f", 1): 7,
        ("b", "f", 1, "g"): 7,
    }
    assert str(document.place(("b", "c", "none", "at", "all"))) == "f:3"


def test_values_from_an_alias_are_on_the_line_of_its_use() -> None:
    document = read_yaml("a: &a\n  x: {y: 1}\nb:\n  - *a\nc:\n  <<: *a\nd: *a\n", "f")
    places = {path: (place.line, place.written) for path, place in document.places.items()}
    assert places["a", "x", "y"] == (2, None)
    assert places["b", 0] == (4, 1)
    assert places["b", 0, "x", "y"] == (4, 2)
    assert places["c", "x"] == (6, 2)
    assert places["d", "x"] == (7, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a: duplicate key, first given on line 1"),
        ("x:\n  - {k: 1, k: 2}", "f:2: x[0].k: duplicate key, first given on line 2"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "f:1: a: unsupported tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !mine 3", "f:1: a: unsupported tag !mine; only plain data is read"),
        ("a: !!binary aGk=", "f:1: a: unsupported tag tag:yaml.org,2002:binary; only plain data is read"),
        ("\na: !!int x", "f:2: a: 'x' does not fit its tag tag:yaml.org,2002:int"),
        ("? [1, 2]\n: 3", "f:1: expected a name or a number as the key"),
        ("a: {<<: 3}", "f:1: a: expected a mapping after '<<'"),
        ("a: &a\n  <<: *a", "f:2: a: '<<' merges a mapping into itself"),
        ("a: &a [*a]", "f:1: invalid YAML: an alias refers to a value around it"),
        ("a: 1\nb: [1,", "f:2: invalid YAML: while parsing a flow node"),
        ("a: *b", "f:1: invalid YAML: found undefined alias 'b'"),
        ("a: \0", "f:1: invalid YAML: it contains characters that YAML does not allow"),
        ("[" * 5000, "f:1: the YAML is nested too deeply"),
    ],
)
def test_bad_yaml_is_a_problem_with_its_line(text: str, said: str) -> None:
    assert said in read_yaml(text, "f").text()


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    laughs = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 7))]
    assert "its aliases expand to more than 100000 values" in read_yaml("\n".join(laughs), "f").text()
