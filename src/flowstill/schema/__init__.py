"""How values that users write are declared, checked and found by name."""

from flowstill.schema.dataclass import is_specification, specification, validated

__all__ = ["is_specification", "specification", "validated"]
