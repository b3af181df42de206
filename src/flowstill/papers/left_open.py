"""Which parts of a table's row had to be reconstructed because the paper leaves them open; the table says so."""

from __future__ import annotations

from flowstill.data.spec import DISTORTED
from flowstill.papers.rows import jobs_of
from flowstill.recipes.recipe import Recipe

_NETS = {"vgg-student-strided": "the layout of the strided VGG"}
_DATA = "what distorts the images"
_RECODING = "the threshold and the strength of sparse recoding"


def left_open(recipe: Recipe, row: str) -> tuple[str, ...]:
    """What had to be reconstructed for a row's jobs and the jobs that they start from; teachers do not count.

    Args:
        recipe: the table's recipe.
        row: the row.

    Returns:
        Each point once.

    Example:
        >>> from flowstill.recipes.load import load_recipe
        >>> left_open(load_recipe("fsp-table3"), "fsp")
        ('how the FSP loss weighs its matrices',)
        >>> left_open(load_recipe("svd-table3"), "svd_joint")
        ()
    """
    found = [_DATA] if recipe.data.name in DISTORTED else []
    names = list(jobs_of(recipe, row))
    for name in names:  # grows in the loop
        job = recipe.jobs[name]
        names += [other for other in recipe.builds_on(name) if other not in (job.teacher, *names)]
        found += [_NETS[job.network.name]] if job.network.name in _NETS else []
        for stage in job.stages:
            found += [term.knowledge.left_open for update in stage.updates for term in update.terms]
            found += [_RECODING for player in stage.players.values() if player.recode]
    return tuple(dict.fromkeys(point for point in found if point))
