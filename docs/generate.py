"""Write what the documentation takes from the code: ``make docs``. With ``--check``, name the stale pages instead.

``docs/reference`` is generated whole, from the docstrings of every public name. In ``docs/methods`` and ``README.md`` the
parts between ``<!-- generated: KIND ARGUMENT -->`` and ``<!-- end -->`` are:

* ``options CLASS``: the fields of a specification, with the meaning that the class's docstring gives them.
* ``recipe METHOD``: a whole recipe by this method, without anything that the reader of recipes adds by itself.
* ``methods``, ``knowledge``, ``rules``, ``procedures``: tables of what is registered.
* ``method_names``: the names of all methods, in a sentence.
* ``folders``: the package's folders, each with the first line of its docstring.

Running this twice changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from generator.lists import LISTS
from generator.markdown import Kinds, regenerated
from generator.recipes import recipe
from generator.reference import reference
from generator.specifications import options

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
KINDS: Kinds = {"options": options, "recipe": recipe, **LISTS}


def written_by_hand() -> list[Path]:
    """The pages of which only parts are generated."""
    return [*sorted((ROOT / "docs" / "methods").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def current() -> dict[Path, str]:
    """The text that each page should have."""
    pages = {page: regenerated(page.read_text(encoding="utf-8"), KINDS) for page in written_by_hand()}
    return pages | {REFERENCE / name: text for name, text in reference().items()}


def stale(pages: dict[Path, str]) -> list[Path]:
    """The pages that are missing, differ from what they should be, or have nothing left to describe."""
    differ = [page for page, text in pages.items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    return differ + [page for page in sorted(REFERENCE.glob("*.md")) if page not in pages]


def main(arguments: list[str] | None = None) -> int:
    """Write the stale pages, or only name them; the exit status is 1 if ``--check`` finds any."""
    parser = argparse.ArgumentParser(description="Write the parts of the documentation that follow from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale, and name it")
    check = parser.parse_args(arguments).check
    pages = current()
    found = stale(pages)
    for page in found:
        print(f"{page.relative_to(ROOT)} is stale: run `make docs`" if check else f"wrote {page.relative_to(ROOT)}")
        if check:
            continue
        if page in pages:
            page.parent.mkdir(exist_ok=True)
            page.write_text(pages[page], encoding="utf-8")
        else:
            page.unlink()
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
