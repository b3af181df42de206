"""Markdown: tables, the text of docstrings, and the generated parts of a page that is otherwise written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from flowstill.recipes.dump import plain

PART = re.compile(r"(<!-- generated: (\w+) ?([\w-]*) -->\n).*?(<!-- end -->)", re.DOTALL)
Kinds = Mapping[str, Callable[[str], str]]  # of generated parts: each makes the text from the marker's argument


def regenerated(text: str, kinds: Kinds) -> str:
    """A page with its generated parts brought up to date."""
    return PART.sub(lambda part: f"{part[1]}{kinds[part[2]](part[3])}\n{part[4]}", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """A Python code block."""
    return f"```python\n{text}\n```"


def line(text: str) -> str:
    r"""A docstring's text on one line, for a cell of a table.

    >>> line("Mean of ``x``\nover the batch.")
    'Mean of `x` over the batch.'
    """
    return _escaped(" ".join(text.split())).replace("``", "`")


def prose(text: str) -> str:
    r"""A docstring's text: paragraphs stay, doctests and indented formulas become code blocks.

    >>> prose("Twice ``x``, not *y*.")
    'Twice `x`, not \\*y\\*.'
    """
    return "\n\n".join(_block(block) for block in re.split(r"\n\s*\n", text.strip("\n")))


def _block(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return code(block)
    if _is_formula(block):
        return f"```text\n{block}\n```"
    return _escaped(block).replace("``", "`")


def _is_formula(block: str) -> bool:
    """Whether a paragraph is one equation, such as ``G[b, i, j] = 1/(h w) * sum_st ...``."""
    return bool(re.match(r"\s*[A-Za-z_]\w*(\[[^\]]*\])?(\([^)]*\))? = ", block))


def _escaped(text: str) -> str:
    """Text whose asterisks and angle brackets, outside of code, Markdown does not read as its own."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"(\*|<(?=[A-Za-z/!]))", r"\\\1", piece) for piece in pieces
    )


def written(value: Any) -> str:
    """A value as YAML says it."""
    return yaml.safe_dump(plain(value), default_flow_style=True).removesuffix("\n").removesuffix("\n...")
