"""The messages for wrong values, the same from Python and from plain data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from flowstill.errors import FlowstillError, RecipeError
from flowstill.recipes.recipe import (
    AdaptiveClip,
    AfterStage,
    Data,
    Optimizer,
    Player,
    Sum,
    Weights,
)
from flowstill.schema import specification, validated
from flowstill.schema.problems import Problems, members, path_text, shown
from flowstill.schema.text import Name


@specification
class Kernel:
    """Options of many types, to test the message for each."""

    width: Annotated[float, Field(gt=0, lt=10)] = 1.0
    shape: Literal["round", "square"] | tuple[float, ...] | int = "round"
    sizes: tuple[int, int] = (3, 3)
    names: dict[str, str] = Field(default_factory=dict)
    jobs: dict[Name, int] = Field(default_factory=dict)
    stride: int | None = None
    mode: Annotated[Sum | AdaptiveClip, Field(discriminator="name")] = Sum()


def problems(kind: type, value: Any) -> list[str]:
    with pytest.raises(Problems) as caught:
        validated(kind, value)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"stride": "abc"}, "Kernel.stride: expected a whole number, got 'abc'"),
        ({"stride": 1.5}, "Kernel.stride: expected a whole number, got 1.5"),
        ({"stride": True}, "Kernel.stride: expected a whole number, got 'true'"),
        ({"width": "wide"}, "Kernel.width: expected a number, got 'wide'"),
        ({"width": None}, "Kernel.width: expected a number, got nothing"),
        ({"width": False}, "Kernel.width: expected a number, got 'false'"),
        ({"width": float("nan")}, "Kernel.width: expected a finite number, got nan"),
        ({"width": 0}, "Kernel.width: expected more than 0, got 0"),
        ({"width": 10}, "Kernel.width: expected less than 10, got 10"),
        ({"sizes": 3}, "Kernel.sizes: expected a list, got 3"),
        ({"sizes": [3]}, "Kernel.sizes: expected 2 items, got [3]"),
        ({"sizes": []}, "Kernel.sizes: expected 2 items, got []"),
        ({"sizes": [1, 2, 3]}, "Kernel.sizes: expected at most 2 items, got [1, 2, 3]"),
        ({"sizes": [1, "x"]}, "Kernel.sizes[1]: expected a whole number, got 'x'"),
        ({"names": []}, "Kernel.names: expected a mapping, got []"),
        ({"names": {"a": 1}}, "Kernel.names.a: expected text, got 1"),
        ({"names": {1: "a"}}, "Kernel.names[1]: expected text as the name, got 1; put it in quotes"),
        (
            {"jobs": {"a/b": 1}},
            "Kernel.jobs.a/b: expected a name of letters, digits, spaces, '_', '-' and '.', at most 100 characters, got 'a/b'",
        ),
        (
            {"shape": "sqare"},
            "Kernel.shape: expected 'round' or 'square' or a list or a whole number, got 'sqare'. "
            "Did you mean 'square'?",
        ),
        ({"shape": [1, "x"]}, "Kernel.shape[1]: expected a number, got 'x'"),
        ({"widht": 1}, "Kernel.widht: unknown key. Did you mean 'width'?"),
        ({3: 1}, "Kernel[3]: unknown key. Choose from 'width', 'shape', 'sizes', 'names', 'jobs', 'stride', 'mode'."),
        ({"mode": {"name": "sun"}}, "Kernel.mode: expected 'sum' or 'adaptive_clip', got 'sun'. Did you mean 'sum'?"),
        ({"mode": {}}, "Kernel.mode: expected 'sum' or 'adaptive_clip', got {}"),
        ({"mode": 4}, "Kernel.mode: expected a mapping, got 4"),
        ({"mode": {"name": "sum", "x": 1}}, "Kernel.mode.x: unknown key. Choose from 'name'."),
        ({"mode": {"name": "adaptive_clip", "epoch_steps": 0}}, "Kernel.mode.epoch_steps: expected at least 1, got 0"),
        (4, "Kernel: expected a mapping, got 4"),
    ],
)
def test_one_problem_is_one_line_in_plain_words(value: Any, said: str) -> None:
    assert problems(Kernel, value) == [said]


def test_all_problems_are_reported_at_once() -> None:
    assert problems(Kernel, {"width": "a", "sizes": [1, "b"], "colour": 1}) == [
        "Kernel.width: expected a number, got 'a'",
        "Kernel.sizes[1]: expected a whole number, got 'b'",
        "Kernel.colour: unknown key. Choose from 'width', 'shape', 'sizes', 'names', 'jobs', 'stride', 'mode'.",
    ]


def test_a_wrong_key_and_its_wrong_value_are_both_reported() -> None:
    assert problems(Kernel, {"jobs": {"a/b": "x"}}) == [
        "Kernel.jobs.a/b: expected a name of letters, digits, spaces, '_', '-' and '.', at most 100 characters, got 'a/b'",
        "Kernel.jobs.a/b: expected a whole number, got 'x'",
    ]


def test_constructor_and_plain_data_give_the_same_errors() -> None:
    given = {"name": "sdg", "momentum": 2, "nestrov": True}
    with pytest.raises(RecipeError) as caught:
        Optimizer(**given)
    assert str(caught.value).splitlines() == problems(Optimizer, given)


def test_arguments_given_by_position_are_named() -> None:
    with pytest.raises(RecipeError, match=r"^Optimizer\.momentum: expected a number, got 'a'$"):
        Optimizer("sgd", "a")
    with pytest.raises(RecipeError, match=r"^Optimizer\.momentum: expected a number, got 'true'$"):
        Optimizer("sgd", True)
    with pytest.raises(RecipeError, match="Weights: expected at most 1 values, also got 2"):
        Weights("a", 2)
    with pytest.raises(RecipeError, match="AfterStage: 'stage' is missing"):
        AfterStage("a")


def test_recipe_errors_are_flowstill_and_value_errors() -> None:
    assert issubclass(Problems, RecipeError)
    assert issubclass(RecipeError, FlowstillError)
    assert issubclass(RecipeError, ValueError)


def test_specifications_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Data("digits").batch = 3


def test_problems_in_nested_dataclasses_keep_their_place() -> None:
    with pytest.raises(RecipeError, match=r"^Player\.optimizer\.momentum: expected less than 1, got 1$"):
        Player(optimizer={"momentum": 1})


def test_helpers_of_messages() -> None:
    assert path_text(()) == ""
    assert path_text((0, "a")) == "[0].a"
    assert len(shown("x" * 500)) == 60
    assert members(Annotated[int | None, "x"] | Literal["a"]) == (int, Literal["a"])
