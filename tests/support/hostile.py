"""What a command must not run, and what it must not leave behind."""

import os
from pathlib import Path


class Evil:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def everything(folder: Path) -> list[str]:
    """All files and folders in ``folder``, at any depth."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
