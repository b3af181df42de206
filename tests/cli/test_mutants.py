"""Recipes, options and names damaged at random: one message and exit code 2, or a valid recipe."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flowstill.cli import main
from support.hostile import everything
from support.mutants import TINY, mutant, names, recipe_texts

# The folder and the captured output are the same for all examples, and are left as they were. Without an explanation of
# each failure, which would try thousands of variants; the shrunk example is enough.
FUZZ = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
RANDOM = st.randoms(use_true_random=False)
TEXTS = recipe_texts()


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def check_mutant(rng: random.Random, capsys) -> int:
    text, options = mutant(rng, TEXTS)
    Path("mutant.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    code = main(["check", "mutant.yaml", *options])
    check_words(code, capsys)
    assert everything(Path.cwd()) == ["mutant.yaml"]
    return code


def check_names(rng: random.Random, capsys) -> None:
    code = main(names(rng))
    check_words(code, capsys)
    assert everything(Path.cwd()) == []


def check_words(code: int, capsys) -> None:
    shown = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 2) == shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert len(shown.err) < 50_000


def test_damaged_recipes_get_one_clear_error(here, capsys):
    Path("mutant.yaml").write_text(TINY)
    assert main(["check", "mutant.yaml"]) == 0  # whole, it is right
    capsys.readouterr()
    codes = []

    @settings(FUZZ, max_examples=80)
    @given(RANDOM)
    def fuzz(rng):
        codes.append(check_mutant(rng, capsys))

    fuzz()
    assert codes.count(2) > 30


@settings(FUZZ, max_examples=40)
@given(RANDOM)
def test_damaged_names_get_one_clear_error(here, capsys, rng):
    check_names(rng, capsys)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(FUZZ, max_examples=10_000)
@given(RANDOM)
def test_ten_thousand_damaged_recipes(here, capsys, rng):
    check_mutant(rng, capsys)


@pytest.mark.slow
@settings(FUZZ, max_examples=1000)
@given(RANDOM)
def test_a_thousand_damaged_names(here, capsys, rng):
    check_names(rng, capsys)
