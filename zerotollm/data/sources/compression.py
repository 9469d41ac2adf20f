"""Files opened by their suffix: .gz, .zst and .xz are decompressed while they are read, and refused if they explode."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, stamp

RATIO = 100.0  # default of data.ratio
FREE = (
    1 << 26
)  # decompressed bytes up to which every ratio is accepted: small files of equal lines are no attack
BUFFER = 1 << 18
ZSTD_INPUT = 1 << 12  # compressed bytes given to the decompressor at once: at most 128 MB come back

DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What a damaged compressed file raises when it is read."""


def open_binary(path: Path, ratio: float = RATIO) -> BinaryIO:
    """Open the content of a file, decompressed if its name ends in .gz, .zst or .xz. It can seek.

    Reading raises UsageError once the content is more than `ratio` times as large as the file, and `DAMAGED`.
    """
    if not (suffix := compression(path)):
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Decompressed(path, _OPEN[suffix], ratio), BUFFER))


def read_slice(path: Path, ratio: float, start: int, stop: int) -> bytes:
    """Return bytes `start` to `stop` of the content of a file. Slices are best read in order."""
    file = _kept_open(path, stamp(path), ratio)
    file.seek(start)
    return file.read(stop - start)


@lru_cache(maxsize=1)
def _kept_open(path: Path, stamp: Stamp, ratio: float) -> BinaryIO:
    opener = _OPEN.get(compression(path), lambda path: path.open("rb"))
    return cast(BinaryIO, io.BufferedReader(_Decompressed(path, opener, ratio), BUFFER))


def compression(path: Path) -> str:
    """Return ".gz", ".zst" or ".xz", or "" for a file that is not compressed."""
    suffix = path.suffix.lower()
    return suffix if suffix in _OPEN else ""


def damaged(path: Path, error: Exception) -> UsageError:
    """Return the error for a file whose reading raised one of `DAMAGED`."""
    name = {".gz": "gzip", ".zst": "Zstandard", ".xz": "xz"}[compression(path)]
    return UsageError(f"{path} is not a complete {name} file: {error}")


def check_ratio(path: Path, size: int, compressed: int, ratio: float) -> None:
    """Raise UsageError if `size` bytes of content are too many for so many compressed bytes."""
    if size > FREE and size > ratio * compressed:
        raise UsageError(
            f"{path} decompresses to more than {ratio:g} times its size ({size:,} bytes of {compressed:,}), which text "
            "seldom does: raise --data.ratio if the file is trusted"
        )


class _Decompressed(io.RawIOBase):
    """The content of a compressed file. Seeking decompresses what lies before."""

    def __init__(self, path: Path, opener: Callable[[Path], BinaryIO], ratio: float):
        self._path, self._opener, self._ratio = path, opener, ratio
        self._compressed = path.stat().st_size
        self._source, self._position = opener(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = self._source.read(len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        check_ratio(self._path, self._position, self._compressed, self._ratio)
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset if whence == io.SEEK_SET else self._position + offset
        if target < self._position:
            self._source.close()
            self._source, self._position = self._opener(self._path), 0
        while self._position < target and self.read(min(BUFFER, target - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._source.close()
        super().close()


class _Zstd(io.RawIOBase):
    """The frames of a Zstandard file. The library's own reader ends silently where a file was cut."""

    def __init__(self, path: Path):
        self._file, self._left, self._frame = path.open("rb"), b"", None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._left:
            block = self._file.read(ZSTD_INPUT)
            if not block:
                if self._frame:
                    raise EOFError("it ends within a frame")
                return 0
            self._left = self._decompress(block)
        number = min(len(buffer), len(self._left))
        buffer[:number] = self._left[:number]
        self._left = self._left[number:]
        return number

    def _decompress(self, block: bytes) -> bytes:
        content = []
        while block:
            # Files of archives are written with windows of up to 2 GB (zstd --long=31).
            frame = self._frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            content.append(frame.decompress(block))
            block, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        return b"".join(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Zstd(path), BUFFER))


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_xz(path: Path) -> BinaryIO:
    return cast(BinaryIO, lzma.open(path, "rb"))


_OPEN: dict[str, Callable[[Path], BinaryIO]] = {".gz": _open_gzip, ".zst": _open_zstd, ".xz": _open_xz}
