"""Sound clouds in the forms with a text header, a few hundred bytes each, for `hostile.py`."""

from __future__ import annotations

import numpy as np

_NAMES = "x y z red green blue"
_POINTS = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
_ROWS = "".join(f"{x:.3f} {y:.3f} {z:.3f} 10 20 250\n" for x, y, z in _POINTS.tolist()).encode()


def _ply(form: str) -> bytes:
    lines = [f"property {'float' if name in 'xyz' else 'uchar'} {name}" for name in _NAMES.split()]
    return "\n".join(["ply", f"format {form} 1.0", f"element vertex {len(_POINTS)}", *lines, "end_header\n"]).encode()


def _pcd(form: str) -> bytes:
    count = len(_POINTS)
    head = f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {count}\nHEIGHT 1\nPOINTS {count}\n"
    return f"{head}DATA {form}\n".encode()


_MIXED = np.zeros(len(_POINTS), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
_MIXED["xyz"] = _POINTS
PLY = [_ply("ascii") + _ROWS, _ply("binary_little_endian") + _MIXED.tobytes()]
PCD = [
    _pcd("binary") + _POINTS.tobytes(),
    _pcd("ascii") + b"".join(b"%.3f %.3f %.3f\n" % (*p,) for p in _POINTS.tolist()),
]
XYZ = [b"// a scan\n12\n" + _ROWS, _ROWS.replace(b" ", b",")]
