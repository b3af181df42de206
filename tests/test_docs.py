"""The pages about methods say what the code does."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import flowstill as fs
from flowstill.errors import RecipeError
from flowstill.knowledge.labels import Labels
from flowstill.recipes.distillation import distillation
from flowstill.recipes.methods import usual_data
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.methods import METHODS

ROOT = Path(__file__).parent.parent
LINKING = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()
PAGES: dict[str, str] = {page.name: page.read_text(encoding="utf-8") for page in generate.pages()}
PARTS = [(part[2], part[3]) for text in PAGES.values() for part in generate.PART.finditer(text)]


def blocks(language: str) -> list[Any]:
    """All code blocks of a language, with the page's name for a test's id."""
    return [
        pytest.param(code, id=f"{name}-{number}")
        for name, text in PAGES.items()
        for number, code in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    ]


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page: str) -> None:
    assert generate.regenerated(PAGES[page]) == PAGES[page], "run `make docs`"


def test_what_is_generated_comes_anew() -> None:
    stale = "before\n<!-- generated: options Labels -->\nold\n<!-- end -->\nafter"
    new = generate.regenerated(stale)
    assert "old" not in new
    assert "`smoothing` | number, at least 0, below 1 | `0.0` | the share" in new
    assert new.startswith("before\n<!-- generated: options Labels -->\n|")
    assert new.endswith(" |\n<!-- end -->\nafter")
    assert generate.regenerated(new) == new


def test_every_marker_is_one_that_is_generated() -> None:
    for name, text in PAGES.items():
        assert text.count("<!-- generated") == text.count("<!-- end -->") == len(generate.PART.findall(text)), name


@pytest.mark.parametrize("kind", generate.CLASSES.values(), ids=generate.CLASSES)
def test_every_option_has_a_meaning_and_a_row(kind: type) -> None:
    meanings = generate.meanings(kind)
    assert [name for name in generate.option_names(kind) if len(meanings.get(name, "")) < 10] == []
    assert ("options", kind.__name__) in PARTS
    assert len(re.findall(r"^\| `", generate.options(kind.__name__), re.MULTILINE)) == len(generate.option_names(kind))


def test_meanings_end_where_the_next_begins_or_the_paragraph_ends() -> None:
    class Spec(Labels):
        """First: not an option.

        smoothing: of labels: ``a``
        and more. name: what it is called, see smoothing: it stays.

        Further text.
        """

    assert generate.meanings(Spec) == {
        "smoothing": "of labels: ``a`` and more. name: what it is called, see smoothing: it stays."
    }


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (bool, "`true`, `false`"),
        (tuple[int, ...] | None, "list of whole numbers; or `null`"),
        (tuple[float, float], "2 numbers"),
        (tuple[tuple[int, int], ...], "list of pairs of whole numbers"),
    ],
)
def test_values_are_said_in_words(hint: Any, said: str) -> None:
    assert generate.values(hint) == said


def test_an_option_without_a_meaning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Labels, "__doc__", "Cross-entropy with the labels; smoothing of these.")
    with pytest.raises(LookupError, match=r"Labels does not say what \['smoothing'\] mean"):
        generate.options("Labels")


def test_a_method_without_a_page_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._entries, "telling", METHODS["kd"])
    with pytest.raises(LookupError, match=r"no page has a recipe of \['telling'\]"):
        generate.methods()


def test_the_examples_in_the_generator_hold() -> None:
    failed, attempted = doctest.testmod(generate)
    assert not failed
    assert attempted


def test_every_method_has_a_page_that_names_it(method: str) -> None:
    assert ("recipe", method) in PARTS
    (page,) = (text for name, text in PAGES.items() if f"<!-- generated: recipe {method} -->" in text)
    assert re.search(rf"^Methods?: .*`{method}`", page, re.MULTILINE)


def test_a_generated_recipe_is_what_distill_trains(method: str, tmp_path: Path) -> None:
    path = tmp_path / f"{method}.yaml"
    path.write_text(re.sub(r"^```(yaml\n)?", "", generate.recipe(method), flags=re.MULTILINE))
    recipe = fs.load_recipe(path)
    assert recipe.name == method
    assert recipe.data == usual_data("cifar10")
    assert recipe.jobs == {
        "teacher": Job(Net("resnet26"), weights="teacher.safetensors"),
        "student": Job(Net("resnet8"), stages=METHODS[method].stages(3), teacher="teacher"),
    }


def test_a_generated_recipe_says_nothing_that_could_be_left_out() -> None:
    text = generate.recipe("fsp-joint")
    for default in ("weight:", "momentum", "mode", "flows", "knowledge", "update_batchnorm", "[]", "null"):
        assert default not in text
    assert "epoch_steps: 195" in text


@pytest.mark.parametrize("code", blocks("yaml"))
def test_recipes_load(code: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(code)
    assert fs.load_recipe(tmp_path / "recipe.yaml").jobs["student"].stages


@pytest.mark.parametrize("code", blocks("sh"))
def test_commands_make_recipes(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowstill.cli import main, training

    made: list[Recipe] = []
    monkeypatch.setattr(training, "train_and_show", lambda recipe, *args, **kwargs: made.append(recipe))
    lines = code.replace("\\\n", " ").splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "flowstill"
        assert main(arguments) == 0
        assert made[-1].name == arguments[arguments.index("--method") + 1]
    assert len(made) == len(lines)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_makes_recipes(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finished:
        student = torch.nn.Identity()

    made: list[Recipe] = []

    def distill(*args: Any, **kwargs: Any) -> Finished:
        made.append(distillation(*args, **kwargs))
        return Finished()

    monkeypatch.setattr(fs, "distill", distill, raising=False)
    networks = {"teacher": fs.create("resnet26", num_classes=10), "student": fs.create("resnet8", num_classes=10)}
    exec(compile(code, "page", "exec"), {**networks})
    assert len(made) == code.count("fs.distill(")
    assert all(recipe.jobs["student"].stages for recipe in made)


def test_an_option_that_is_not_there_is_refused_by_the_commands() -> None:
    with pytest.raises(RecipeError, match="flwos"):
        distillation(
            "resnet26",
            "resnet8",
            "cifar10",
            teacher_weights="t",
            set=["student.stages.transfer.transfer={name: fsp, flwos: inside}"],
        )


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


def test_links_are_found() -> None:
    assert anchors("# One\n## `a-b`: two, three\n```\n# no\n```\n") == {"one", "a-b-two-three"}
    assert "(svd.md#adaptive-clipping)" in PAGES["fsp.md"]
