"""Content-addressed files: `blobs/ab/cd...` by the sha256 of their bytes, so equal bytes are stored once.

A blob is written to a partial name, fsynced, then renamed: it is there whole or not at all. This file knows no
database; who needs a blob stands in `artifact_reference`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from store.errors import StoreError

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def disk_error(error: OSError, where: Path) -> StoreError | None:
    """A full or read-only disk as a StoreError; None for anything else."""
    if error.errno in _FULL:
        return StoreError(
            f"No space is left for {where}.",
            code="disk_full",
            given=str(where),
            legal="free disk space",
            next="Free some space or delete models that are no longer needed, then run it again. Nothing was lost.",
        )
    if error.errno in _DENIED:
        return StoreError(
            f"{where} cannot be written.",
            code="read_only",
            given=str(where),
            legal="a folder that this user may write to",
            next="Change the folder's permissions, or choose another folder with OFFSHOOT_HOME or --store.",
        )
    return None


def _raise(error: OSError, where: Path) -> None:
    known = disk_error(error, where)
    if known is not None:
        raise known from error
    raise error


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BlobStore:
    """The blob folder of a store. All methods are safe from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the blob lies, whether or not it is there."""
        if not _DIGEST.fullmatch(digest):
            raise StoreError("That is no blob digest.", given=digest, legal="64 hexadecimal digits")
        return self.folder / digest[:2] / digest[2:]

    def exists(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def holds(self, text: str) -> bool:
        """Whether `text` is the digest of a blob that is there."""
        return _DIGEST.fullmatch(text) is not None and self.exists(text)

    def size(self, digest: str) -> int:
        """Bytes of the blob. Raises StoreError(missing_blob)."""
        return self._present(digest).stat().st_size

    def read(self, digest: str) -> bytes:
        """The bytes of the blob. Raises StoreError(missing_blob, broken_blob): what was altered on the disk is given to nobody."""
        data = self._present(digest).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._broken(digest)
        return data

    def whole(self, digest: str) -> Path:
        """Where the blob lies, once its bytes were hashed anew. Raises StoreError(missing_blob, broken_blob)."""
        path = self._present(digest)
        if not self.verify(digest):
            raise self._broken(digest)
        return path

    def _broken(self, digest: str) -> StoreError:
        return StoreError(
            f"The file of blob {digest[:12]} was changed on disk.",
            code="broken_blob",
            given=str(self.path(digest)),
            next="Restore the file from a backup or an archive, or delete the model and make it again from its recorded spec.",
        )

    def _present(self, digest: str) -> Path:
        path = self.path(digest)
        if not path.is_file():
            raise StoreError(
                f"The file of blob {digest[:12]} is missing from the store.",
                code="missing_blob",
                given=str(path),
                next="Restore the file from a backup, or delete the model and make it again from its recorded spec.",
            )
        return path

    def scratch(self, suffix: str = "") -> Path:
        """A fresh partial name on the blobs' own file system; hand the finished file to `put_file(..., move=True)`."""
        partial = self.folder / "partial"
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _raise(error, partial)
        return partial / f"{os.getpid()}-{secrets.token_hex(8)}{suffix}"

    def put_bytes(self, data: bytes) -> str:
        """Store bytes; returns their sha256. Raises StoreError(disk_full, read_only)."""
        digest = hashlib.sha256(data).hexdigest()
        if self._touch(digest):
            return digest
        partial = self.scratch()
        try:
            with open(partial, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            self._rename(partial, digest)
        except OSError as error:
            _raise(error, partial)
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def put_file(self, source: Path, *, move: bool = False) -> str:
        """Store a file's bytes; returns their sha256. `move` takes the file itself where the file system allows."""
        source = Path(source)
        if move and source.parent == self.folder / "partial":
            return self._adopt(source)
        partial = self.scratch()
        hasher = hashlib.sha256()
        try:
            with open(source, "rb") as given, open(partial, "wb") as out:
                while chunk := given.read(CHUNK_BYTES):
                    hasher.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            digest = hasher.hexdigest()
            if not self._touch(digest):
                self._rename(partial, digest)
            if move:
                source.unlink()
        except OSError as error:
            _raise(error, partial)
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def _adopt(self, partial: Path) -> str:
        digest = digest_of_file(partial)
        try:
            if self._touch(digest):
                partial.unlink()
                return digest
            handle = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._rename(partial, digest)
        except OSError as error:
            _raise(error, partial)
        return digest

    def _touch(self, digest: str) -> bool:
        """Renew the age of a blob that is there, so that the clean-up leaves it to its new owner."""
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def _rename(self, partial: Path, digest: str) -> None:
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
        fsync_folder(target.parent)

    def verify(self, digest: str) -> bool:
        """Whether the blob is there and its bytes still have this digest."""
        path = self.path(digest)
        return path.is_file() and digest_of_file(path) == digest

    def remove(self, digest: str) -> int:
        """Delete the blob; returns the bytes freed (0 when it was not there)."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        except OSError as error:
            _raise(error, path)
        return size

    def digests(self) -> Iterator[str]:
        """Every blob that is there."""
        for shelf in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(shelf.iterdir()):
                if _DIGEST.fullmatch(shelf.name + path.name):
                    yield shelf.name + path.name

    def remove_partials(self, *, older_than_s: float) -> int:
        """Delete what killed writers left behind; returns the bytes freed."""
        freed = 0
        for path in (self.folder / "partial").glob("*"):
            stat = path.stat()
            if time.time() - stat.st_mtime > older_than_s:
                freed += stat.st_size
                path.unlink(missing_ok=True)
        return freed


def digest_of_file(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    with open(path, "rb") as given:
        return hashlib.file_digest(given, "sha256").hexdigest()
