"""What ``make docs`` writes from the code: see ``docs/generate.py``."""
