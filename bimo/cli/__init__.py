"""The command line. Verbs of one stage share a file; `commands.py` lists them and runs one."""

from bimo.cli.commands import VERBS, main

__all__ = ["VERBS", "main"]
