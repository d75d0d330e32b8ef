"""The command line: arguments in, exit code out."""

from .main import main

__all__ = ["main"]
