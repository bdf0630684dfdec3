"""A mutant: files with something wrong in them, and the command line that is to read them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

ABOUT = "mutant.json"


@dataclass(frozen=True)
class Mutant:
    """`arguments` of `rmax`, in a folder that holds `files`; `kind` is what was mutated, `change` how."""

    kind: str
    source: str
    change: str
    arguments: tuple[str, ...]
    files: dict[str, bytes]

    def lay_out(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def save(self, path: Path) -> None:
        """As one file, for replay."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"kind": self.kind, "source": self.source, "change": self.change, "arguments": self.arguments}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(ABOUT, json.dumps(about))
            for name, data in self.files.items():
                archive.writestr(name, data)

    @classmethod
    def load(cls, path: Path) -> Mutant:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(ABOUT))
            files = {name: archive.read(name) for name in archive.namelist() if name != ABOUT}
        return cls(about["kind"], about["source"], about["change"], tuple(about["arguments"]), files)
