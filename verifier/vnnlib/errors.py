"""The one error of a specification that cannot be read: it names the file and the line."""

from __future__ import annotations


class VnnlibError(ValueError):
    """`path:line: message`; line 0 means the file as a whole."""

    def __init__(self, path: str, line: int, message: str) -> None:
        self.path, self.line, self.message = path, line, message
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")
