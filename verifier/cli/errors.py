"""Bad input becomes one sentence and exit code 2; nobody should have to read a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bounds.files import trouble
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


@contextmanager
def writing(flag: str, path: str) -> Iterator[None]:
    """The same for an output path that came with a flag."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{flag} {path}: cannot be written ({trouble(error)})") from error


def sentence(path: str | Path, error: Exception) -> str:
    """What is wrong with the file, on one line, with its name in front."""
    if isinstance(error, OSError) and error.errno is not None:
        text, path = trouble(error), error.filename or path  # the system may complain about another file
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    name = str(path)
    return text if name in text or Path(name).name in text else f"{name}: {text}"


def not_built(flag: str) -> BadInput:
    """The refusal of a flag that the contract has and this version has not."""
    return BadInput(f"{flag} is not built yet")
