"""What all tests and doctests share."""

from collections.abc import Iterator

import pytest

from flowstill.schema.registry import Registry


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = [(registry, dict(registry), dict(registry._origins)) for registry in Registry.every]
    yield
    for registry, entries, origins in before:
        registry._entries, registry._origins = entries, origins
