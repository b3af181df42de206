"""Recipes and options damaged at random: one message and exit code 2, or a valid recipe."""

import random
from pathlib import Path

import pytest

from flowstill.cli import main
from support.hostile import everything
from support.mutants import TINY, mutant, names, recipe_texts


def check_mutants(seed, count, capsys):
    rng, texts, refused = random.Random(seed), recipe_texts(), 0
    for number in range(count):
        text, options = mutant(rng, texts)
        Path("mutant.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            code = main(["check", "mutant.yaml", *options])
        except BaseException as error:
            raise AssertionError(
                f"mutant {number} of seed {seed}, {[o[:200] for o in options]}:\n{text[:3000]}"
            ) from error
        shown = capsys.readouterr()
        assert code in (0, 2), (seed, number)
        assert (code == 2) == shown.err.startswith("error: "), (seed, number)
        assert "Traceback" not in shown.err, (seed, number)
        assert len(shown.err) < 50_000, (seed, number)
        refused += code == 2
    assert everything(Path.cwd()) == ["mutant.yaml"]
    return refused


def name_mutants(seed, count, capsys):
    rng = random.Random(seed)
    for number in range(count):
        arguments = names(rng)
        try:
            code = main(arguments)
        except BaseException as error:
            raise AssertionError(f"command {number} of seed {seed}: {[a[:200] for a in arguments]}") from error
        shown = capsys.readouterr()
        assert code in (0, 2), arguments
        assert (code == 2) == shown.err.startswith("error: "), arguments
        assert len(shown.err) < 50_000
    assert everything(Path.cwd()) == []


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_damaged_recipes_get_one_clear_error(here, capsys):
    Path("mutant.yaml").write_text(TINY)
    assert main(["check", "mutant.yaml"]) == 0  # whole, it is right
    capsys.readouterr()
    assert check_mutants(0, 80, capsys) > 40


def test_damaged_names_get_one_clear_error(here, capsys):
    name_mutants(0, 40, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 41))
def test_ten_thousand_damaged_recipes(here, capsys, seed):
    name_mutants(seed, 50, capsys)
    check_mutants(seed, 250, capsys)
