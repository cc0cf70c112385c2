"""A zip whose list of files has a limited length: `zipfile` reads that list as a whole."""

import zipfile
from typing import BinaryIO

from backend.errors import WorkbenchError
from backend.files import read_limits
from backend.sizes import size_text


def open_zip(file: BinaryIO, name: str, error: type[WorkbenchError], cure: str) -> zipfile.ZipFile:
    """Open a zip for reading; raises `error` where its list of files is too long."""
    bounded = _BoundedReads(file, name, error, cure)
    archive = zipfile.ZipFile(bounded)
    bounded.most = None
    return archive


class _BoundedReads:
    """A file from which at most `most` bytes are read at once."""

    def __init__(self, file: BinaryIO, name: str, error: type[WorkbenchError], cure: str) -> None:
        self._file, self._name = file, name
        self._error, self._cure = error, cure
        self.most: int | None = read_limits.ZIP_DIRECTORY_BYTES
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.most is not None and size > self.most:
            raise self._error(
                f"The list of files in {self._name} has {size_text(size)}, and at most "
                f"{size_text(self.most)} are read.",
                cure=self._cure,
            )
        return self._file.read(size)
