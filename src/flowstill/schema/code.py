"""Code that a user names: a Python file or an installed module, run on their word alone."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowstill.errors import FlowstillError, RecipeError, nearest

_RUN: dict[str, tuple[bytes, types.ModuleType]] = {}  # a file's module by its name, and the text that made it


def import_code(name: str) -> types.ModuleType:
    """Import what a recipe ``uses``: ``path/file.py``, or the name of an installed module.

    Raises:
        RecipeError: there is no such file or module, or its own code fails (named with file and line).
    """
    if name.endswith(".py"):
        return import_file(Path(name).expanduser(), RecipeError)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise RecipeError(f"The module {name!r} needs {error.name!r}, which is not installed.") from error
        raise RecipeError(
            f"There is no module {name!r}. Expected the name of an installed module, or a path that ends in '.py'."
        ) from None
    except Exception as error:
        raise RecipeError(f"The module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def import_file(path: Path, error: type[FlowstillError]) -> types.ModuleType:
    """Run a Python file as a module of a private name, without leaving compiled files beside it.

    A file whose text is as it was is not run again. The file's code can do anything: call this on the user's word.

    Raises:
        FlowstillError: of the type ``error``: there is no such file, or its code fails.
    """
    if not path.is_file():
        folder = path.parent
        near = nearest(path.name, (p.name for p in folder.glob("*.py"))) if folder.is_dir() else []
        raise error(f"No file {str(path)!r}. " + (f"Did you mean {near[0]!r}?" if near else "Check the path."))
    text = path.read_bytes()
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_flowstill_{path.stem}_{digest}"
    if name in _RUN and _RUN[name][0] == text:
        return _RUN[name][1]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there

    def execute() -> None:
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)

    run_code(execute, path, f"{path} cannot be imported", error)
    _RUN[name] = text, module
    return module


def run_code(call: Callable[[], Any], path: Path, what: str, error: type[FlowstillError]) -> Any:
    """Run the user's code; an error in it is told with the last line of the file that it passed through.

    Raises:
        FlowstillError: of the type ``error``; its text begins with ``what``.
    """
    try:
        return call()
    except FlowstillError:
        raise
    except (Exception, SystemExit) as failure:
        if isinstance(failure, SyntaxError) and failure.filename == str(path):
            line = failure.lineno
        else:
            lines = [f.lineno for f in traceback.extract_tb(failure.__traceback__) if f.filename == str(path)]
            line = lines[-1] if lines else None
        place = f"{path}:{line}" if line else str(path)
        raise error(f"{what}: {place}: {type(failure).__name__}: {failure}") from failure
