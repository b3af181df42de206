"""Short forms in recipe files: ``teacher``, ``student`` and ``stages`` at the top level stand for two jobs."""

from __future__ import annotations

from typing import Any

from flowstill.errors import RecipeError
from flowstill.recipes.dump import plain
from flowstill.recipes.places import Document
from flowstill.recipes.procedures import make_stages
from flowstill.schema.problems import Loc, Problems
from flowstill.transfer.methods import find_method

SHORTHAND = ("teacher", "student", "stages")


def expand(document: Document) -> None:
    """Move ``teacher``, ``student`` and ``stages`` from the top level of a recipe's data to ``jobs``.

    ``teacher: resnet26`` is a job with that network; ``student`` and ``stages`` make a job taught by ``teacher``.
    ``jobs`` may be given too, but no job twice. Problems are recorded in the document.

    Args:
        document: the recipe's data, changed in place.
    """
    data = document.data
    given = data.get("jobs", {})
    if not isinstance(given, dict):  # validation reports the problem
        document.data = {key: value for key, value in data.items() if key not in SHORTHAND}
        return
    if not any(key in data for key in ("jobs", *SHORTHAND)):
        return
    has_student = "student" in data
    jobs: dict[Any, Any] = {}
    for key in [key for key in data if key in ("jobs", "teacher", "student")]:
        value = data.pop(key)
        if key == "jobs":
            jobs |= {name: job for name, job in value.items() if name not in jobs}
        elif key in given:
            document.say((key,), f"job {key!r} is also given under 'jobs'; give it once")
        else:
            jobs[key] = value
            _move(document, (key,), ("jobs", key))
    data["jobs"] = jobs
    jobs_as_mappings(document)
    student = None if "student" in given else jobs.get("student")
    has_stages, stages = "stages" in data, data.pop("stages", None)
    if has_stages and not has_student:
        document.say(("stages",), "'stages' at the top level need a 'student' at the top level")
    if not isinstance(student, dict):
        return  # no student at the top level, or an invalid one
    if has_stages and "stages" in student:
        document.say(("stages",), "the student's stages are also given under 'student'; give them once")
    elif has_stages:
        student["stages"] = stages
        _move(document, ("stages",), ("jobs", "student", "stages"))
    if "teacher" in jobs:
        student.setdefault("teacher", "teacher")


def jobs_as_mappings(document: Document) -> None:
    """Expand the short forms of jobs.

    ``NAME`` is short for ``{network: NAME}``, ``stages: METHOD`` for the method's stages, and
    ``stages: {procedure: NAME, ...}`` for the stages that the procedure builds from the other keys. Problems are
    recorded in the document.

    Args:
        document: the recipe's data, changed in place.
    """
    jobs = document.data.get("jobs")
    if not isinstance(jobs, dict):
        return
    for name, job in jobs.items():
        if isinstance(job, str):
            jobs[name] = {"network": job}
        elif isinstance(job, dict) and isinstance(job.get("stages"), str):
            job["stages"] = _method(document, name, job["stages"])
        elif isinstance(job, dict) and isinstance(job.get("stages"), dict) and "procedure" in job["stages"]:
            job["stages"] = _procedure(document, ("jobs", name, "stages"), job["stages"])


def _method(document: Document, job: str, name: str) -> list[Any]:
    """The stages of a method; none if the method does not exist, with the problem recorded."""
    try:
        found = find_method(name)
    except RecipeError as error:
        document.say(("jobs", job, "stages"), str(error))
        return []
    if found.by_section:
        document.say(
            ("jobs", job, "stages"), f"the stages of {name!r} depend on the networks' sections; list them here"
        )
        return []
    stages: list[Any] = plain(found.stages(0))
    return stages


def _procedure(document: Document, path: Loc, given: dict[Any, Any]) -> list[Any]:
    """The stages that a procedure builds from its arguments; none if they are invalid, with the problems recorded."""
    arguments = {key: value for key, value in given.items() if key != "procedure"}
    try:
        stages = make_stages(given["procedure"], arguments)
    except Problems as error:
        for problem in error.problems:
            document.say((*path, *problem.loc), problem.sentence())
        return []
    except RecipeError as error:
        document.say((*path, "procedure"), str(error))
        return []
    written: list[Any] = plain(stages)
    return written


def _move(document: Document, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Move the places of ``old`` and everything below it to ``new``."""
    places = document.places
    for path in [path for path in places if path[: len(old)] == old]:
        places[(*new, *path[len(old) :])] = places.pop(path)
