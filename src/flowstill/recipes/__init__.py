"""Recipes: what to train, as data. Read from YAML, changed, checked and scaled."""
