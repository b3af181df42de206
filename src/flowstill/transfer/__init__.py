"""How it passes: stages, the procedures that make them, and how two gradients meet."""
