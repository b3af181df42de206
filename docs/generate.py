"""Write the parts of docs/methods that follow from the code: ``make docs``.

They stand between ``<!-- generated: KIND ARGUMENT -->`` and ``<!-- end -->``; running this twice changes nothing. Kinds:

* ``options CLASS``: the fields of a specification, their meaning as the class's docstring has it, "name: text."
* ``recipe METHOD``: a whole recipe by this method, without what the reader of recipes adds by itself.
* ``methods``: all methods, each with a link to the page that has its recipe.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from flowstill.recipes.dump import plain
from flowstill.recipes.recipe import AdaptiveClip, Job, Optimizer, Stage
from flowstill.transfer.knowledge import KNOWLEDGE
from flowstill.transfer.methods import METHODS
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.stages import Stored

PAGES = Path(__file__).parent / "methods"
CLASSES: dict[str, type] = {
    kind.__name__: kind for kind in (*KNOWLEDGE.values(), AdaptiveClip, Optimizer, Recoding, Stored)
}
SECTIONS = 3  # in which the two networks of a recipe pair
PART = re.compile(r"(<!-- generated: (\w+) ?([\w-]*) -->\n).*?(<!-- end -->)", re.DOTALL)
BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))
HEAD = """\
data: {name: cifar10, augment: {crop: 4}}
teacher: {network: resnet26, weights: teacher.safetensors}
student: resnet8
"""


def main() -> None:
    """Bring every page up to date, and say which have changed."""
    for page in pages():
        old = page.read_text(encoding="utf-8")
        if (new := regenerated(old)) != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(PAGES.parent.parent)} is written anew")


def pages() -> list[Path]:
    """The pages about methods."""
    return sorted(PAGES.glob("*.md"))


def regenerated(text: str) -> str:
    """A page with its generated parts as they are now."""
    return PART.sub(lambda part: f"{part[1]}{KINDS[part[2]](part[3])}\n{part[4]}", text)


def option_names(kind: type) -> list[str]:
    """The fields of a specification, without a ``name`` that has one value only."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    return [name for name in names if name != "name" or len(get_args(hints[name])) > 1]


def meanings(kind: type) -> dict[str, str]:
    """What the docstring of a specification says of its options: each up to the next, or to the paragraph's end.

    An option's text begins with its name and a colon, where a sentence begins; "alpha, beta: ..." is of both.
    """
    name = "|".join(option_names(kind)) or "$"
    start = re.compile(rf"(?:^|(?<=[.:)] ))((?:{name})(?:, (?:{name}))*): ")
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(kind) or ""):
        pieces = start.split(" ".join(paragraph.split()))
        for names, text in zip(pieces[1::2], pieces[2::2], strict=True):
            found |= dict.fromkeys(names.split(", "), text.strip())
    return found


def options(class_name: str) -> str:
    """A table of a specification's options."""
    kind = CLASSES[class_name]
    hints, meaning = get_type_hints(kind, include_extras=True), meanings(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    if missing := [name for name in option_names(kind) if name not in meaning]:
        raise LookupError(f"the docstring of {class_name} does not say what {missing} mean: '{missing[0]}: text.'")
    rows = [
        (f"`{name}`", values(hints[name]), f"`{written(defaults[name])}`", meaning[name].replace("``", "`"))
        for name in option_names(kind)
    ]
    return table(("option", "values", "default", "meaning"), rows) if rows else "No options."


def values(hint: Any, bounds: str = "", plural: str = "") -> str:
    """What values a type allows.

    >>> values(Annotated[float, FieldInfo(ge=0, lt=1)] | None), values(Literal["a", "b"])
    ('number, at least 0, below 1; or `null`', '`a`, `b`')
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        extras = [extra for info in inner[1:] if isinstance(info, FieldInfo) for extra in info.metadata]
        said = [f", {word} {getattr(e, key)}" for of, key, word in BOUNDS for e in extras if isinstance(e, of)]
        return values(inner[0], "".join(said), plural)
    if origin in (Union, types.UnionType):
        return "; or ".join(values(one, plural=plural) for one in inner)
    if origin is Literal:
        return ", ".join(f"`{written(value)}`" for value in inner)
    if origin is tuple:
        of = values(inner[0], plural="s")
        return f"list of {of}" if inner[-1] is ... else f"{len(inner)} {of}" if not plural else f"pairs of {of}"
    return {
        bool: "`true`, `false`",
        types.NoneType: "`null`",
        int: f"whole number{plural}",
        float: f"number{plural}",
        str: f"text{plural}",
    }[hint] + bounds


def written(value: Any) -> str:
    """A value as YAML says it."""
    return yaml.safe_dump(plain(value), default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def recipe(method: str) -> str:
    """A recipe that can be copied: the method's stages, for a ResNet-26 and a ResNet-8."""
    stages = [shortened(plain(stage), partial(_is, stage)) for stage in stages_of(method)]
    text = yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=120)
    return f"```yaml\nname: {method}\n{HEAD}{text}```"


def stages_of(method: str) -> tuple[Stage, ...]:
    """The method's stages, for networks that pair in three sections."""
    return METHODS[method].stages(SECTIONS)


def _is(stage: Stage, data: Any) -> bool:
    """Whether the data is read as this stage."""
    try:
        return Job("student", stages=(data,), teacher="teacher").stages == (stage,)  # type: ignore[arg-type]  # network: a name is read by Job
    except ValueError:
        return False


def shortened(data: Any, same: Callable[[Any], bool]) -> Any:
    """Plain data without what ``same`` does not miss: keys, the rest of a mapping beside its name, a list around one."""
    for shorter in _shorter(data):
        if same(shorter):
            return shortened(shorter, same)
    if not isinstance(data, (dict, list)):
        return data
    data = data.copy()

    def same_with(key: Any, part: Any) -> bool:
        whole = data.copy()
        whole[key] = part
        return same(whole)

    for key in data if isinstance(data, dict) else range(len(data)):
        data[key] = shortened(data[key], partial(same_with, key))
    return data


def _shorter(data: Any) -> Iterator[Any]:
    if isinstance(data, list) and len(data) == 1:
        yield data[0]
    if isinstance(data, dict):
        if list(data) == ["name"]:
            yield data["name"]
        yield from ({other: data[other] for other in data if other != key} for key in data)


def methods(_: str = "") -> str:
    """A table of all methods."""
    page = {
        part[3]: path.name
        for path in pages()
        for part in PART.finditer(path.read_text(encoding="utf-8"))
        if part[2] == "recipe"
    }
    if missing := [name for name in METHODS if name not in page]:
        raise LookupError(f"no page has a recipe of {missing}; put '<!-- generated: recipe {missing[0]} -->' into one")
    rows = [
        (f"[`{name}`]({page[name]})", m.transfers, m.needs, m.paper, "yes" if m.reconstruction else "")
        for name, m in sorted(METHODS.items())
    ]
    return table(("method", "transfers", "needs of the networks", "paper", "reconstruction"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


KINDS: dict[str, Callable[[str], str]] = {"options": options, "recipe": recipe, "methods": methods}

if __name__ == "__main__":
    main()
