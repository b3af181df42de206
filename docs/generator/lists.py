"""Lists of what is registered: methods, kinds of knowledge, rules, procedures; and of the package's folders."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import flowstill
from flowstill.transfer.knowledge import KNOWLEDGE
from flowstill.transfer.methods import METHODS
from flowstill.transfer.procedures import PROCEDURES
from flowstill.transfer.rules import RULES
from generator.markdown import PART, line, table

METHOD_PAGES = Path(__file__).parent.parent / "methods"


def pages_with(kind: str) -> dict[str, str]:
    """The name of the page in docs/methods that has the generated part of ``kind``, for each argument of it."""
    return {
        part[3]: path.name
        for path in sorted(METHOD_PAGES.glob("*.md"))
        for part in PART.finditer(path.read_text(encoding="utf-8"))
        if part[2] == kind
    }


def methods(_: str = "") -> str:
    """A table of all methods, each with a link to the page that has its recipe."""
    page = pages_with("recipe")
    if missing := [name for name in METHODS if name not in page]:
        raise LookupError(f"no page has a recipe of {missing}; put '<!-- generated: recipe {missing[0]} -->' into one")
    rows = [
        (f"[`{name}`]({page[name]})", m.transfers, m.needs, m.paper, "yes" if m.reconstruction else "")
        for name, m in sorted(METHODS.items())
    ]
    return table(("method", "transfers", "needs from the networks", "paper", "reconstruction"), rows)


def method_names(_: str = "") -> str:
    """The names of all methods in a sentence."""
    return _wrapped(f"Methods: {', '.join(f'`{name}`' for name in sorted(METHODS))}.")


def knowledge(_: str = "") -> str:
    """A table of all kinds of knowledge, each with a link to the page that has its options."""
    page = pages_with("options")
    if missing := [kind.__name__ for kind in KNOWLEDGE.values() if kind.__name__ not in page]:
        raise LookupError(
            f"no page has the options of {missing}; put '<!-- generated: options {missing[0]} -->' into one"
        )
    rows = [
        (f"[`{name}`]({page[kind.__name__]})", kind.summary, kind.paper) for name, kind in sorted(KNOWLEDGE.items())
    ]
    return table(("knowledge", "what it transfers", "paper"), rows)


def rules(_: str = "") -> str:
    """A table of all rules."""
    return table(
        ("rule", "gradient that the player steps by"), [(f"`{n}`", r.summary) for n, r in sorted(RULES.items())]
    )


def procedures(_: str = "") -> str:
    """A table of all procedures, each with its parameters."""
    rows = [
        (
            f"`{name}`",
            _first_line(make),
            ", ".join(f"`{parameter}`" for parameter in inspect.signature(make).parameters),
        )
        for name, make in sorted(PROCEDURES.items())
    ]
    return table(("procedure", "what it does", "arguments"), rows)


def folders(_: str = "") -> str:
    """A table of the package's folders and of the files beside them: the first line of each one's docstring."""
    found = sorted(pkgutil.iter_modules(flowstill.__path__), key=lambda module: (not module.ispkg, module.name))
    files = {module.name: "/" if module.ispkg else ".py" for module in found if not module.name.startswith("_")}
    rows = [
        (f"`{name}{ending}`", _first_line(importlib.import_module(f"flowstill.{name}")))
        for name, ending in files.items()
    ]
    return table(("`src/flowstill/`", "what it holds"), rows)


def _first_line(documented: object) -> str:
    """The first paragraph of a docstring; a missing one is an error."""
    if not documented.__doc__:
        raise LookupError(f"{documented!r} has no docstring")
    return line(re.split(r"\n\s*\n", inspect.cleandoc(documented.__doc__))[0])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


LISTS: dict[str, Callable[[str], str]] = {
    "methods": methods,
    "method_names": method_names,
    "knowledge": knowledge,
    "rules": rules,
    "procedures": procedures,
    "folders": folders,
}
