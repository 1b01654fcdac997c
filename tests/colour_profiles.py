# SPDX-License-Identifier: Apache-2.0
"""Small ICC profiles (version 2) for tests: RGB and grey ones of any gamma, and a CMYK one."""

import struct

__all__ = ["cmyk_profile", "grey_profile", "rgb_profile"]

_D50 = (0.9642, 1.0, 0.8249)
# Adobe RGB's red, green and blue, adapted to D50.
_WIDE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def rgb_profile(gamma: float = 2.2) -> bytes:
    """Of a wide gamut."""
    primaries = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, _WIDE), strict=True))
    return _profile(b"mntr", b"RGB ", b"XYZ ", primaries | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma)))


def grey_profile(gamma: float = 1.0) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """In which the lightness falls by the ink in all channels together, and only cyan has a colour."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    lab = bytes(value for inks in corners for value in (255 - 60 * sum(inks), 128 - 40 * inks[0], 128 - 40 * inks[0]))
    identity = b"".join(struct.pack(">l", 65536 * (place in (0, 4, 8))) for place in range(9))
    curves = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + curves * 4 + lab + curves * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(_D50), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    start = 128 + 4 + 12 * len(tags)
    index, body = b"", b""
    for name, content in tags.items():
        index += name + struct.pack(">LL", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">L4xL4s4s4s12x4s", start + len(body), 0x02400000, kind, space, connection, b"acsp")
    header = header.ljust(68, b"\0") + struct.pack(">lll", *(round(value * 65536) for value in _D50))
    return header.ljust(128, b"\0") + struct.pack(">L", len(tags)) + index + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">lll", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">LHxx", 1, round(gamma * 256))
