"""Text that may be given as a path."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BeforeValidator


def path_as_text(value: Any) -> Any:
    """A path as its text; anything else as given.

    >>> from pathlib import PurePosixPath
    >>> path_as_text(PurePosixPath("runs/kd")), path_as_text(5)
    ('runs/kd', 5)
    """
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, BeforeValidator(path_as_text)]
