"""Whether a run's files are there and as they were saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowstill.errors import RunError, option
from flowstill.files import digest_of
from flowstill.runs.metrics import EVENTS, METRICS
from flowstill.runs.state import PREVIOUS, STATE

if TYPE_CHECKING:
    from flowstill.runs.folder import Run

SUMMARY, REPORT, PREPROCESSING = "summary.json", "report.html", "preprocessor_config.json"


def check_files(run: Run) -> None:
    """Check that what a run has saved so far is there and as it was saved.

    Raises:
        RunError: the summary is missing, a folder is in a file's place or a file in a folder's, or a network was damaged
            or replaced. One that is missing passes.
    """
    path, networks = run.path, [f"{job}.safetensors" for job in run.jobs]
    for name in (SUMMARY, METRICS, STATE, PREVIOUS, REPORT, PREPROCESSING, *networks):
        if (path / name).is_dir():
            raise RunError(f"{str(path / name)!r} is a folder, where a file belongs. Move it away.")
    if (path / EVENTS).is_file():
        raise RunError(f"{str(path / EVENTS)!r} is a file, where a folder belongs. Move it away.")
    if not any((path / name).exists() for name in (SUMMARY, STATE, PREVIOUS)):
        for name in networks:
            if (path / name).exists():
                raise RunError(
                    f"{str(path / SUMMARY)!r} is missing, which says whether {name!r} is finished. Restore it "
                    f"from a copy, or give another {option('out')}."
                )
    for job in run.summary.jobs:
        run.check_network(job)


def check_nothing_lost(run: Run) -> None:
    """Check that the networks of all finished jobs are there.

    Raises:
        RunError: one is missing.
    """
    for job, done in run.summary.jobs.items():
        if done.sha256 is not None and not (run.path / f"{job}.safetensors").exists():
            raise RunError(lost(run.path, job))


def lost(folder: Path, job: str) -> str:
    """What to say of a finished job's network that is gone."""
    return (
        f"{str(folder / f'{job}.safetensors')!r} is missing, the network of the finished job {job!r}. Restore it "
        f"from a copy, or train it again in another {option('out')}."
    )


def check_network(path: Path, sha256: str) -> None:
    """Check that a network's file is as it was saved.

    Raises:
        RunError: it was damaged or replaced, or cannot be read.
    """
    try:
        found = digest_of(path)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {error.strerror}. Restore it from a copy.") from None
    if found != sha256:
        raise RunError(
            f"{str(path)!r} is not the network that the run saved: its SHA-256 is {found[:12]}..., and was "
            f"{sha256[:12]}... The file was damaged or replaced. Restore it from a copy, or train it again "
            f"in another {option('out')}."
        )
