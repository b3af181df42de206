"""How knowledge passes: stages, the procedures that make them, rules that combine gradients, and recoding."""
