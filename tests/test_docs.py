"""The documentation says what the code does."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import flowstill as fs
import generate
from flowstill.errors import RecipeError
from flowstill.knowledge.labels import Labels
from flowstill.recipes.distillation import distillation
from flowstill.recipes.methods import usual_data
from flowstill.recipes.recipe import Job, Net, Recipe
from flowstill.transfer.methods import METHODS
from generator import lists, markdown, recipes, reference, source, specifications

ROOT = Path(__file__).parent.parent
LINKING = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "methods").glob("*.md"))}
PARTS = [(part[2], part[3]) for text in PAGES.values() for part in markdown.PART.finditer(text)]
NAMES = [name for name in fs.__all__ if name != "__version__"]


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


def test_all_pages_are_current() -> None:
    assert generate.stale(generate.current()) == [], "run `make docs`"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stale page, instead of all pages."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: options Labels -->\nold\n<!-- end -->\nafter")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(generate, "written_by_hand", lambda: [page])
    monkeypatch.setattr(generate, "reference", lambda: {"one.md": "new"})
    return page


def test_check_names_stale_pages_and_writes_nothing(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page.read_text()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "page.md is stale: run `make docs`\nreference/one.md is stale: run `make docs`\n"
    assert page.read_text() == before
    assert not (page.parent / "reference").exists()


def test_stale_pages_are_written_once(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (page.parent / "reference").mkdir()
    (page.parent / "reference" / "gone.md").write_text("of a name that was removed")
    assert generate.main([]) == 0
    assert capsys.readouterr().out == "wrote page.md\nwrote reference/one.md\nwrote reference/gone.md\n"
    new = page.read_text()
    assert "old" not in new
    assert "`smoothing` | number, at least 0, below 1 | `0.0` | " in new
    assert new.startswith("before\n<!-- generated: options Labels -->\n|")
    assert new.endswith(" |\n<!-- end -->\nafter")
    assert [path.name for path in (page.parent / "reference").iterdir()] == ["one.md"]
    assert generate.main(["--check"]) == 0


def test_every_marker_is_generated() -> None:
    for path in generate.written_by_hand():
        text = path.read_text(encoding="utf-8")
        found = markdown.PART.findall(text)
        assert text.count("<!-- generated") == text.count("<!-- end -->") == len(found), path
        assert {kind for _, kind, *_ in found} <= set(generate.KINDS), path


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    text = (ROOT / "docs" / "reference" / f"{reference.area_of(name)}.md").read_text(encoding="utf-8")
    (entry,) = re.findall(rf"^## `fs\.{name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert entry.startswith(f"\n```python\nfs.{name}")
    if source.public(name).docstring:
        assert entry.split("```\n", 1)[1].strip(), "no text"


def test_the_reference_shows_docstrings() -> None:
    text = reference.reference()["knowledge.md"]
    (entry,) = re.findall(r"^## `fs\.fsp_matrix`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert "fs.fsp_matrix(front: Tensor, back: Tensor" in entry
    for part in (
        "| argument | type | meaning |",
        "| `back` | `Tensor` |",
        "**Returns** (N, m, n), float32",
        "| `ShapeError` |",
        ">>> ",
    ):
        assert part in entry


def test_signatures_show_short_forms() -> None:
    text = reference.reference()["transfer.md"]
    assert "fs.Term(knowledge: Knowledge | str | Mapping[str, Any], weight: ScheduleLike = 1.0)" in text
    assert "### `Stage.needs_teacher`" in text


def test_a_name_without_a_page_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "AREAS", {"errors": reference.AREAS["errors"]})
    with pytest.raises(LookupError, match=r"no page of the reference holds FSP \(flowstill\.knowledge\.fsp\.FSP\)"):
        reference.area_of("FSP")


@pytest.mark.parametrize("kind", specifications.CLASSES.values(), ids=specifications.CLASSES)
def test_every_option_has_a_meaning_and_a_row(kind: type) -> None:
    meanings = specifications.meanings(kind)
    assert [name for name in specifications.option_names(kind) if len(meanings.get(name, "")) < 10] == []
    assert ("options", kind.__name__) in PARTS
    assert len(re.findall(r"^\| `", specifications.options(kind.__name__), re.MULTILINE)) == len(
        specifications.option_names(kind)
    )


def test_meanings_are_read_by_the_docstring_parser() -> None:
    class Spec(Labels):
        """First: not an option.

        Attributes:
            smoothing: of labels: ``a``
                and *more*, name: it stays.
            name: what it is called.

        Further text.
        """

    class Derived(Spec):
        """Says nothing of its own.

        Attributes:
            name: another.
        """

    own = {"smoothing": r"of labels: `a` and \*more\*, name: it stays.", "name": "what it is called."}
    assert specifications.meanings(Spec) == specifications.meanings(Labels) | own
    assert specifications.meanings(Derived) == specifications.meanings(Spec) | {"name": "another."}


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (bool, "`true`, `false`"),
        (tuple[int, ...] | None, "list of whole numbers; or `null`"),
        (tuple[float, float], "2 numbers"),
        (tuple[tuple[int, int], ...], "list of pairs of whole numbers"),
    ],
)
def test_values_are_described_in_words(hint: Any, said: str) -> None:
    assert specifications.values(hint) == said


def test_an_option_without_a_meaning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Labels, "__doc__", "Cross-entropy with the labels; smoothing of these.")
    with pytest.raises(
        LookupError, match=r"Labels: the docstring does not say what smoothing means\. Add 'smoothing: text'"
    ):
        specifications.options("Labels")


def test_a_method_without_a_page_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._entries, "telling", METHODS["kd"])
    with pytest.raises(LookupError, match=r"no page has a recipe of \['telling'\]"):
        lists.methods()


@pytest.mark.parametrize("module", [markdown, reference, source, specifications], ids=lambda module: module.__name__)
def test_the_examples_in_the_generator_hold(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert not failed
    assert attempted


def test_every_method_has_a_page_that_names_it(method: str) -> None:
    assert ("recipe", method) in PARTS
    (page,) = (text for name, text in PAGES.items() if f"<!-- generated: recipe {method} -->" in text)
    assert re.search(rf"^Methods?: .*`{method}`", page, re.MULTILINE)


def test_a_generated_recipe_equals_what_distill_trains(method: str, tmp_path: Path) -> None:
    path = tmp_path / f"{method}.yaml"
    path.write_text(re.sub(r"^```(yaml\n)?", "", recipes.recipe(method), flags=re.MULTILINE))
    recipe = fs.load_recipe(path)
    assert recipe.name == method
    assert recipe.data == usual_data("cifar10")
    assert recipe.jobs == {
        "teacher": Job(Net("resnet26"), weights="teacher.safetensors"),
        "student": Job(Net("resnet8"), stages=METHODS[method].stages(3), teacher="teacher"),
    }


def test_a_generated_recipe_has_no_redundant_keys() -> None:
    text = recipes.recipe("fsp-joint")
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


def test_commands_refuse_an_unknown_option() -> None:
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
def test_relative_links_resolve(page: Path) -> None:
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
