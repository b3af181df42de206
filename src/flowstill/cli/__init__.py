"""The command line: one short file for each command, which parses, calls and prints."""

from flowstill.cli.app import main

__all__ = ["main"]
