"""Readers of data sets, one layout in each file."""
