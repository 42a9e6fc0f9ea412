"""The folder of an object data set's clouds, one object a file: ULIP's, PointLLM's, Cap3D's, or Cap3D's zips as they are shipped."""

from __future__ import annotations

import bisect
import re
from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.data.prepare.cloud_zips import CloudZips
from rb.data.prepare.clouds import MAX_BYTES, cloud_of, read_cloud
from rb.data.prepare.common import Reason, RejectedError
from rb.sources.cloud_arrays import claimed_points

SUFFIXES = (".npz", ".npy", ".ply", ".pt")
# PointLLM's own loader leaves these two out (their colours are damaged); other publishers' clouds of the same objects are sound.
POINTLLM_DAMAGED = frozenset({"6760e543e1d645d5aaacd3803bcae524", "b91c0711149d460a8004f9c06d3b7f38"})
_POINTLLM_ENDING = "_8192.npy"
_UID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_COUNTED = re.compile(r"_[1-9]\d*")  # the number of points behind a uid


class CloudFolder:
    """Clouds ``<uid>[_N].npz|npy|ply|pt`` in ``root/<uid>/`` (ULIP), in ``root`` itself (listed once, as it may hold 660,000), or in its zips.

    Args:
        root: the folder, or one zip.
        uids: every known uid. A file whose whole name is another uid is that object's: ``chair_0001.npy`` is no cloud of ``chair``.

    Raises:
        ValueError: a zip that cannot be read.
    """

    def __init__(self, root: Path, uids: Container[str]) -> None:
        zips = [root] if root.suffix == ".zip" else sorted(path for path in root.glob("*.zip") if path.name[0] != ".")
        self.root, self.uids = root, uids
        self._flat = _cloud_names(root)
        self._zips = CloudZips(zips, uids, SUFFIXES)

    def read(self, uid: str, min_points: int) -> NDArray[np.float32]:
        """The cloud of ``uid``, [N, 3 | 6].

        Raises:
            RejectedError: there is none, or none that can be used.
        """
        if not self._zips.paths:
            return read_cloud(self.find(uid), min_points)
        try:
            path = self.find(uid)
        except RejectedError as error:
            if error.reason != Reason.POINTS_MISSING or uid not in self._zips:
                raise
        else:
            return read_cloud(path, min_points)
        where = self._zips.where(uid)
        try:
            data = self._zips.read(uid, MAX_BYTES)
        except ValueError as error:
            raise RejectedError(Reason.POINTS_UNREADABLE, f"{where}: {error}") from None
        return cloud_of(data, self._zips.suffix(uid), where, min_points)

    def find(self, uid: str) -> Path:
        """The file of ``uid``; of several, the one whose header claims the most points.

        Raises:
            RejectedError: none, one that its publisher calls damaged, or a uid that could leave the folder.
        """
        if not _UID.fullmatch(uid):
            raise RejectedError(Reason.UNSAFE_NAME, f"{uid!r:.200} is no uid")
        folder = self.root / uid
        listed = [(self.root, self._flat), (folder, _cloud_names(folder))]
        paths = [place / name for place, names in listed for name in self._named(uid, names)]
        if not paths and listed[1][1]:
            paths = [folder / name for name in listed[1][1] if name.startswith(uid)]
        if not paths:
            raise RejectedError(
                Reason.POINTS_MISSING,
                f"no {folder}/{uid}_8192.npz, nor {self.root}/{uid}_8192.npy (or {', '.join(SUFFIXES)}), with or without the "
                f"number{self._others(folder, uid)}",
            )
        path = paths[0] if len(paths) == 1 else max(paths, key=claimed_points)
        if uid in POINTLLM_DAMAGED and path == self.root / f"{uid}{_POINTLLM_ENDING}":
            raise RejectedError(
                Reason.POINTS_UNREADABLE, f"{path}: one of two clouds that PointLLM leaves out as damaged"
            )
        return path

    def _named(self, uid: str, names: list[str]) -> list[str]:
        """Those of the sorted ``names`` that are ``uid``, or ``uid`` with a number of points."""
        end = bisect.bisect_left(names, uid + "`")  # the sign behind "_"
        mine = names[bisect.bisect_left(names, uid + ".") : end]
        stems = [(name, name.rsplit(".", 1)[0]) for name in mine]
        return [
            name
            for name, stem in stems
            if stem == uid or (_COUNTED.fullmatch(stem, len(uid)) and stem not in self.uids)
        ]

    def _others(self, folder: Path, uid: str) -> str:
        """What else there is for ``uid``, for an error."""
        names = sorted(path.name for path in folder.iterdir() if path.name.startswith(uid)) if folder.is_dir() else []
        if names:
            return f"; there is {', '.join(names)[:200]}: save it as .npy"
        return f", nor in {len(self._zips.paths)} zips" if self._zips.paths else ""


def _cloud_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
