"""Bad input becomes one sentence and exit code 2; nobody should have to read a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from verifier.cli import EXIT_WRONG_USE


class BadInput(click.ClickException):
    """Wrong use or unreadable input: the sentence on stderr, exit code 2."""

    exit_code = EXIT_WRONG_USE


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the errors of reading a file into a sentence that names it. Only for the reading itself:
    the errors of a verification are outcomes, not bad input."""
    try:
        yield
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(sentence(path, error)) from error


def sentence(path: str | Path, error: Exception) -> str:
    """What is wrong with the file, on one line, with its name in front."""
    if isinstance(error, FileNotFoundError):
        text = "no such file"
    elif isinstance(error, IsADirectoryError):
        text = "is a directory, expected a file"
    elif isinstance(error, OSError) and error.errno == errno.EACCES:
        text = "not readable (permission denied)"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    name = str(path)
    return text if name in text or Path(name).name in text else f"{name}: {text}"


def not_built(flag: str) -> BadInput:
    """The refusal of a flag that the contract has and this version has not."""
    return BadInput(f"{flag} is not built yet")
