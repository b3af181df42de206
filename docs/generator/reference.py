"""The API reference: a page for each area, with every name of ``flowstill.__all__``."""

from __future__ import annotations

from dataclasses import dataclass

import griffe

import flowstill
from generator.markdown import code, line, prose, table
from generator.source import default, described, fields, hint, methods, public, sections, signature

KIND = griffe.DocstringSectionKind


@dataclass(frozen=True)
class Area:
    """A page: its title, what it is about, and the modules or names that belong on it."""

    title: str
    about: str
    homes: tuple[str, ...]

    def holds(self, name: str, path: str) -> bool:
        """Whether ``flowstill.NAME``, which is defined at ``path``, belongs here."""
        return any(
            name.startswith(home.removesuffix("*")) if "*" in home else path.startswith(home) for home in self.homes
        )


# The first area that holds a name gets it.
AREAS: dict[str, Area] = {
    "extending": Area(
        "Extending flowstill",
        "What a file of your own uses to add to flowstill. CONTRIBUTING says how recipes find it.",
        ("register*", "specification*", "flowstill.transfer.knowledge."),
    ),
    "training": Area(
        "Distilling and training",
        "Train a student, alone or taught; evaluate it.",
        ("flowstill.api.", "flowstill.engine."),
    ),
    "networks": Area(
        "Networks, taps and sections",
        "Make networks by name, read their feature maps, find and pair their sections.",
        ("flowstill.nets.", "flowstill.features."),
    ),
    "knowledge": Area(
        "Knowledge",
        "What passes from teacher to student. [Methods](../methods/README.md) has the formulas.",
        ("flowstill.knowledge.",),
    ),
    "transfer": Area(
        "Transfer",
        "How knowledge passes: stages, the procedures that make them, rules for how two gradients meet, recoding.",
        ("flowstill.transfer.",),
    ),
    "recipes": Area("Recipes", "What is to be done, as data.", ("flowstill.recipes.",)),
    "data": Area("Data", "Which images, in what batches, with what augmentation.", ("flowstill.data.",)),
    "runs": Area("Runs and reports", "What is left after training.", ("flowstill.runs.", "flowstill.reports.")),
    "errors": Area(
        "Errors",
        "What flowstill raises where the fault is in what it was given; the command line prints it and exits with 2.",
        ("flowstill.errors.",),
    ),
}
NAMES = tuple(name for name in flowstill.__all__ if name != "__version__")


def area_of(name: str) -> str:
    """The page that a public name stands on.

    >>> area_of("fsp_matrix"), area_of("register"), area_of("Stage")
    ('knowledge', 'extending', 'transfer')
    """
    path = public(name).path
    for key, area in AREAS.items():
        if area.holds(name, path):
            return key
    raise LookupError(f"no page of the reference holds {name} ({path}); add its module to an area of AREAS")


def reference() -> dict[str, str]:
    """All pages by file name, the index too."""
    on_page: dict[str, list[str]] = {key: [] for key in AREAS}
    for name in NAMES:
        on_page[area_of(name)].append(name)
    pages = {f"{key}.md": _page(AREAS[key], names) for key, names in on_page.items()}
    return {"README.md": _index(on_page), **pages}


def _index(on_page: dict[str, list[str]]) -> str:
    rows = [
        (f"[{AREAS[key].title}]({key}.md)", ", ".join(f"[`{name}`]({key}.md#{anchor(name)})" for name in names))
        for key, names in on_page.items()
    ]
    return (
        "# Reference\n\nEvery public name of `import flowstill as fs`, from its docstring; `make docs` writes these pages. "
        f"`fs.__version__` is the installed version.\n\n{table(('page', 'names'), rows)}\n"
    )


def anchor(name: str) -> str:
    """The anchor that GitHub gives to the heading of a name."""
    return f"fs{name.lower()}"


def _page(area: Area, names: list[str]) -> str:
    parts = [f"# {area.title}", area.about, *(part for name in names for part in _entry(name))]
    return "\n\n".join(parts) + "\n"


def _entry(name: str) -> list[str]:
    thing = public(name)
    parts = [f"## `fs.{name}`", code(signature(f"fs.{name}", thing)), *_documentation(thing)]
    if thing.is_class:
        if bases := [str(base) for base in thing.bases if str(base) in NAMES]:
            links = (f"[`{base}`]({area_of(base)}.md#{anchor(base)})" for base in bases)
            parts.insert(2, f"Is a {', '.join(links)}.")
        parts += [part for member in methods(thing) for part in _member(name, member)]
    return parts


def _member(owner: str, member: griffe.Object) -> list[str]:
    title = f"{owner}.{member.name}"
    heading = f"### `{title}{'()' if member.is_function else ''}`"
    return [heading, code(signature(title, member)), *_documentation(member)]


def _documentation(thing: griffe.Object) -> list[str]:
    """The docstring in Markdown, with a class's fields after its first paragraphs."""
    parts = [part for section in sections(thing) if (part := _section(section))]
    if thing.is_class and (table_of_fields := _fields(thing)):
        first = 1 if sections(thing) else 0
        parts.insert(first, table_of_fields)
    return parts


def _section(section: griffe.DocstringSection) -> str:
    match section.kind:
        case KIND.text:
            return prose(section.value)
        case KIND.parameters | KIND.other_parameters:
            rows = [(f"`{p.name}`", hint(p.annotation), line(p.description)) for p in section.value]
            return table(("argument", "type", "meaning"), rows)
        case KIND.returns | KIND.yields:
            word = "Returns" if section.kind is KIND.returns else "Yields"
            return "\n".join(f"**{word}** {_sentence(item.name, item.description)}" for item in section.value)
        case KIND.raises:
            rows = [(f"`{item.annotation}`", line(item.description)) for item in section.value]
            return table(("raises", "when"), rows)
        case KIND.examples:
            return "**Example**\n\n" + "\n\n".join(
                code(text) if kind is KIND.examples else prose(text) for kind, text in section.value
            )
        case KIND.admonition:
            return f"**{section.title}**\n\n{prose(section.value.description)}"
        case KIND.attributes:
            return ""  # in the table of fields
    raise LookupError(f"the reference does not show a docstring's section {section.kind.value!r}")


def _sentence(name: str | None, text: str) -> str:
    return line(f"``{name}``: {text}" if name else text)


def _fields(cls: griffe.Class) -> str:
    if not (meaning := described(cls)):
        return ""  # the signature has all that is known of them
    known = {f.name: (hint(f.annotation), f"`{default(f.value)}`" if f.value is not None else "") for f in fields(cls)}
    known = {name: known.get(name, ("", "")) for name in (*known, *(name for name in meaning if name not in known))}
    rows = [(f"`{name}`", kind, value, line(meaning.get(name, ""))) for name, (kind, value) in known.items()]
    return table(("field", "type", "default", "meaning"), rows)
