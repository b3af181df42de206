"""Code that a user names: a Python file or an installed module, run on their word alone."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowstill.errors import FlowstillError, RecipeError, nearest, option

_RUN: dict[str, tuple[bytes, types.ModuleType]] = {}  # module name -> the file's text when it ran, and the module


def is_file(name: str) -> bool:
    """Whether a name in ``uses`` is a Python file, not a module.

    >>> is_file("losses/mine.py"), is_file("mine.losses")
    (True, False)
    """
    return name.endswith(".py")


def located(name: str, folder: str | os.PathLike[str] = "") -> str:
    """A file's absolute path, looked for in ``folder`` first, then in the working directory; a module's name as given.

    >>> located("mine.losses"), os.path.isabs(located("mine.py"))
    ('mine.losses', True)
    """
    if not is_file(name):
        return name
    path = os.path.expanduser(name)
    beside = os.path.join(folder, path)
    return os.path.abspath(beside if os.path.isfile(beside) else path)


def import_used(names: Sequence[str]) -> None:
    """Import all that a recipe ``uses``, files too: call this where the user trusts them.

    Raises:
        RecipeError: as ``import_code`` does.
    """
    for name in names:
        import_code(name, trust_code=True)


def import_code(name: str, *, trust_code: bool) -> types.ModuleType:
    """Import one thing that a recipe ``uses``: ``path/file.py``, or the name of an installed module.

    A file that is imported as a module already is not run a second time under another name.

    Args:
        name: the path or the module's name.
        trust_code: whether the user allows files to run. Modules, which they installed, need no permission.

    Raises:
        RecipeError: a file without ``trust_code``, no such file or module, or its own code fails (with file and line).
    """
    if not is_file(name):
        return _import_module(name)
    if not trust_code:
        raise RecipeError(
            f"{name!r} is a Python file, whose code would run. Allow that with {option('trust_code', True)}."
        )
    path = Path(name).expanduser()
    return _imported_already(path) or import_file(path, RecipeError)


def was_run(name: str) -> bool:
    """Whether a file has been imported in this process, by the user's word or by themselves, and has not changed."""
    path = Path(name).expanduser()
    text = path.read_bytes() if path.is_file() else None
    return text is not None and (
        any(run == text and module.__file__ == str(path) for run, module in _RUN.values())
        or _imported_already(path) is not None
    )


def _import_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise RecipeError(f"The module {name!r} needs {error.name!r}, which is not installed.") from error
        raise RecipeError(
            f"No module {name!r}. Expected the name of an installed module, or a path that ends in '.py'."
        ) from None
    except (Exception, SystemExit) as error:
        raise RecipeError(f"The module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _imported_already(path: Path) -> types.ModuleType | None:
    """The module that Python's own import, or a script's start, made of this file."""
    file = os.path.realpath(path)
    for name, module in list(sys.modules.items()):
        if name not in _RUN and file == os.path.realpath(vars(module).get("__file__") or ""):
            return module
    return None


def import_file(path: Path, error: type[FlowstillError]) -> types.ModuleType:
    """Run a Python file as a module with a private name, without leaving compiled files beside it.

    A file whose text has not changed does not run again. The file's code can do anything: ask the user first.

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

    try:
        run_code(execute, path, f"{path} cannot be imported", error)
    except BaseException:
        del sys.modules[name]
        raise
    _RUN[name] = text, module
    return module


def run_code(call: Callable[[], Any], path: Path, what: str, error: type[FlowstillError]) -> Any:
    """Run the user's code. An error in it is reported with the last line of the file that it passed through.

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
