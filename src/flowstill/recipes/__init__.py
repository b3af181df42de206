"""Recipes: what is to be trained, as data. Read from YAML, changed, checked and scaled."""
