"""``flowstill check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowstill.cli.options import DataRoot, RecipeName, Scale, Seed, Settings, TrustCode

if TYPE_CHECKING:
    from flowstill.recipes.check import JobPlan
    from flowstill.recipes.recipe import Recipe
    from flowstill.recipes.storage import StoredFile


def check(
    recipe: RecipeName,
    settings: Settings = None,
    scale: Scale = 1.0,
    seed: Seed = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
) -> None:
    """Show what a recipe would do, without doing it.

    Builds all networks, taps and pairs without memory for tensors. Reads images only if nothing else tells their size
    or number.
    """
    from flowstill.data import find_facts, find_source, open_data
    from flowstill.recipes.check import check as plan
    from flowstill.recipes.load import load_recipe

    loaded = load_recipe(
        recipe, set=tuple(settings or ()), scale=scale, seed=seed, data_root=data_root, trust_code=trust_code
    )
    find_source(loaded.data)  # says what is missing, without opening a file
    facts = find_facts(loaded.data)
    stores = any(stage.stores for job in loaded.jobs.values() for stage in job.stages)
    plans = plan(loaded, facts.shape, facts.classes, images=open_data(loaded.data).rows if stores else None)
    size = "x".join(map(str, facts.shape))
    print(f"{loaded.name}: {loaded.about}" if loaded.about else loaded.name)
    print(f"data {loaded.data.name}: {size}, {facts.classes} classes, batch {loaded.data.batch}")
    for name in (name for group in loaded.groups() for name in group):
        print()
        _show_job(loaded, plans[name])


def _show_job(recipe: Recipe, plan: JobPlan) -> None:
    """A job's network, its stages and what each term reads."""
    from flowstill.recipes.dump import plain

    job = recipe.jobs[plan.name]
    origin = f", taught by {job.teacher}" if job.teacher else ""
    counts = plan.counts
    print(f"{plan.name}: {plan.network}, {counts.parameters:,} parameters, {counts.macs / 1e6:,.2f} M MACs{origin}")
    if job.weights:
        print(f"  weights from {job.weights}, not trained")
        return
    if job.start == "trained":
        print("  built with trained weights")
    for stage in job.stages:
        print(f"  stage {stage.name}: {stage.steps:,} updates")
        for name, player in stage.players.items():
            print(f"    {name}: {player.optimizer.name}, learning rate {plain(player.lr)}")
        if files := plan.stored[stage.name]:
            print(f"    stored: {_stored(recipe, files)}")
        for term, teacher, student in dict.fromkeys(plan.terms[stage.name]):
            print(f"    {term}")
            for owner, taps in ((job.teacher or "", teacher), (plan.name, student)):
                if taps:
                    print(f"      {owner}: {', '.join(taps)}")


def _stored(recipe: Recipe, files: tuple[StoredFile, ...]) -> str:
    """What is stored on the disk, and its size."""
    from flowstill.files import readable_size
    from flowstill.recipes.storage import most_bytes

    views = recipe.data.augment.view_count
    numbers = f"{sum(file.numbers for file in files):,} numbers ({files[0].dtype}) per image"
    return f"{numbers}, {views} view{'s' if views != 1 else ''}, at most {readable_size(most_bytes(files))} on the disk"
