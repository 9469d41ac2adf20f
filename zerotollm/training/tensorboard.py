"""Scalars in TensorBoard's file format.

tensorboardX writes it too, but its import takes 3 seconds (it imports torch where that is installed), and it cannot
keep one file name over restarts.

A file is a sequence of records: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data
(tensorflow/core/lib/io/record_writer.h). The data is a protocol buffer `Event` (tensorflow/core/util/event.proto).
"""

import struct
from collections.abc import Mapping


def file_header(wall_time: float) -> bytes:
    """Return the first record of an event file. `wall_time` is in seconds since 1970."""
    return _record(_field(1, wall_time) + _field(3, b"brain.Event:2"))


def scalars(values: Mapping[str, float], step: int, wall_time: float) -> bytes:
    """Return one record with a point at `step` in each of the named curves."""
    points = (
        _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", v)) for name, v in values.items()
    )
    return _record(_field(1, wall_time) + b"\x10" + _varint(step) + _field(5, b"".join(points)))


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 3720, section 12.1 (Castagnoli polynomial)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_crc_of_byte, range(256)))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _field(number: int, value: float | bytes) -> bytes:
    """Return a protocol buffer field: a double, or bytes preceded by their length."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
