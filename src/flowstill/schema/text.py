"""Text of a certain form: what may be given as a path, and names that files are called after."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def path_as_text(value: Any) -> Any:
    """A path as its text; anything else as given.

    >>> from pathlib import PurePosixPath
    >>> path_as_text(PurePosixPath("runs/kd")), path_as_text(5)
    ('runs/kd', 5)
    """
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, BeforeValidator(path_as_text)]

LONGEST_NAME = 100  # a file is named after a job and a stage, and file systems allow 255 characters
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$",
        max_length=LONGEST_NAME,
        description=f"a name of letters, digits, spaces, '_', '-' and '.', at most {LONGEST_NAME} characters",
    ),
]
