"""The files of a store: tensors and pictures, named by their content and written atomically."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import StoreError, UnwritableStore
from harness.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_FILES = re.compile(r"artifacts/([0-9a-f]{2})/(\1[0-9a-f]{62})\.safetensors|pictures/([0-9a-f]{16})\.png")

# What can be done about a store that cannot be used as it is.
REPLACE = "give another folder with --store, or put back a copy of this one"


def artifact_name(digest: str) -> str:
    """Where a store keeps the tensors of this sha256, relative to its folder."""
    return f"artifacts/{digest[:2]}/{digest}.safetensors"


def files_of(result: dict[str, Any]) -> list[str]:
    """The files that a stage's result refers to, relative to the store's folder."""
    names = [artifact_name(digest) for digest in result.get("artifacts", ())]
    return [*names, *(result.get("attack") or {}).get("pictures", ())]


def _fits(name: str, data: bytes) -> bool:
    """Whether the name is one that a store gives to a file, and is that of this content."""
    found = _FILES.fullmatch(name)
    return found is not None and hashlib.sha256(data).hexdigest().startswith(found[2] or found[3])


class Artifacts:
    """The files of a store folder: tensors and pictures, named by their content."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            dangling = self.path.is_symlink() and not self.path.exists()
            reason = "it is a link to what is not there" if dangling else error.strerror or error
            raise StoreError(f"cannot use the store {self.path}: {reason}") from error

    def save_tensors(self, tensors: dict[str, Tensor]) -> tuple[str, int]:
        """Write tensors as a safetensors file named by its content. Returns (sha256, bytes)."""
        from safetensors.torch import save

        # The format refuses tensors that share memory: each name gets bytes of its own.
        data = save({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        self.write_file(artifact_name(digest), data)
        return digest, len(data)

    def load_tensors(self, digest: str, device: str = "cpu") -> dict[str, Tensor]:
        """The tensors of an artifact. Raises StoreError where the file is missing or altered."""
        from safetensors.torch import load

        data = self.read_file(artifact_name(digest))
        return {name: tensor.to(device) for name, tensor in load(data).items()}

    def save_picture(self, picture: Image) -> str:
        """Write a PNG named by its content; returns its path, relative to the store."""
        buffer = io.BytesIO()
        picture.save(buffer, format="png")
        data = buffer.getvalue()
        name = f"pictures/{hashlib.sha256(data).hexdigest()[:16]}.png"
        self.write_file(name, data)
        return name

    def read_file(self, name: str) -> bytes:
        """The content of a file by its name in the store. Raises StoreError where it is missing or altered."""
        file = self.path / name
        what = f"{self.path}: {name.split('/')[0].rstrip('s')} {Path(name).stem[:12]}"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StoreError(f"{what} is missing: {error}") from error
        if not _fits(name, data):
            raise StoreError(f"{what} is damaged; run again to compute it anew, or delete {file}")
        return data

    def write_file(self, name: str, data: bytes) -> bool:
        """Write a file named by its content; returns whether it was missing or damaged until then.

        Raises StoreError where the name is not that of the content.
        """
        if not _fits(name, data):
            raise StoreError(f"{self.path}: the content of {name} is not what its name says")
        target = self.path / name
        try:
            if target.exists() and target.stat().st_size == len(data) and _fits(name, target.read_bytes()):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, sync=True) as draft:
                draft.write_bytes(data)
        except OSError as error:
            raise cannot_write(self.path, error.strerror or error) from error
        return True


def cannot_write(path: Path, reason: object) -> UnwritableStore:
    """The error for a store that cannot be written to."""
    return UnwritableStore(
        f"the store {path} cannot be written: {reason}; what was done before is kept: "
        "make room, or give write access, and run the same command again"
    )


def damaged(path: Path, reason: object) -> StoreError:
    """The error for a store whose database is damaged."""
    return StoreError(f"the store {path} is damaged: {reason}; {REPLACE}")
