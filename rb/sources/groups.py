"""Groups of a cloud's points, stored beside it: those that farthest point sampling picks, and the nearest points of each.

``rb/inference/cache_groups.py`` writes such sets; their manifest holds a ``GroupSet``, and every record a member more. They are the indices that
the point encoder would find (``rb/model/grouping.py``), so ``rb/sources/points.py`` gives it the grouped points where they are true, and the cloud
where they are not. Shape letters: N points, G groups, K points of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core import strict_json as strict
from rb.core.npy_files import npy_array, npy_bytes
from rb.core.strict_json import FormatError, checked
from rb.sources.feature_set import first_difference

EXTENSION = "groups.npy"
REMEDY = "write the set again with `rb cache-groups`"
START = 0  # the point that sampling begins with


class GroupsError(FormatError):
    """Stored groups that cannot be used; the message says why."""


@dataclass(frozen=True)
class Grouping:
    """How a point encoder groups points; as of ``PointBertConfig``.

    Attributes:
        num_group: G.
        group_size: K.
        skip_near_origin: points near the origin are never picked.
    """

    num_group: int
    group_size: int
    skip_near_origin: bool = False


@dataclass(frozen=True)
class GroupSet:
    """What the stored groups of a set are, as its manifest says it.

    Attributes:
        num_points: N, of every cloud.
        cloud_frame: the frame in which distances were compared, ``unit`` or ``metres``: their rounding differs, and what is near the origin.
        start: the point that was picked first; ties went to the lowest index.
        num_group, group_size, skip_near_origin: as of ``Grouping``.
    """

    num_points: int
    cloud_frame: str
    num_group: int
    group_size: int
    skip_near_origin: bool
    start: int = START

    @classmethod
    def of(cls, grouping: Grouping, num_points: int, cloud_frame: str) -> GroupSet:
        """Those that are found now."""
        return cls(num_points, cloud_frame, grouping.num_group, grouping.group_size, grouping.skip_near_origin)

    @property
    def shape(self) -> list[int]:
        """[G, 1 + K]: of each group the picked point, then its nearest ones."""
        return [self.num_group, 1 + self.group_size]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest that numbers N points."""
        return np.dtype("<u2" if self.num_points <= 1 << 16 else "<u4")

    @property
    def num_bytes(self) -> int:
        """Of one cloud's groups."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def difference(self, wanted: GroupSet) -> str | None:
        """The first setting that is another one in ``wanted``, in a few words; none if all are equal."""
        return first_difference(vars(self), vars(wanted))


_FIELDS: dict[str, strict.Check] = {
    "num_points": strict.count,
    "cloud_frame": strict.name,
    "num_group": strict.count,
    "group_size": strict.count,
    "skip_near_origin": strict.anything,
    "start": strict.count,
}


def parse_group_set(raw: object, where: str) -> GroupSet:
    """``groups`` of a manifest, its fields and types checked."""
    about = GroupSet(**checked(raw, where, _FIELDS))
    if not 1 <= about.num_group <= about.num_points or not 1 <= about.group_size <= about.num_points:
        raise FormatError(
            f"{where}: num_group {about.num_group} and group_size {about.group_size} must be 1 to num_points, {about.num_points}"
        )
    if not isinstance(about.skip_near_origin, bool):
        raise FormatError(f"{where}: skip_near_origin must be true or false, got {about.skip_near_origin!r}")
    return about


@dataclass(frozen=True)
class StoredGroups:
    """The groups of one cloud as its record holds them: the bytes of ``KEY.groups.npy``, and what they are."""

    data: bytes
    about: GroupSet

    def decode(self, num_points: int, where: str) -> NDArray[np.integer]:
        """[G, 1 + K], each the number of one of the cloud's ``num_points``.

        Raises:
            GroupsError: another array, or a cloud of another size, than the manifest says; or a number of no point.
        """
        if num_points != self.about.num_points:
            raise GroupsError(
                f"{where}: its cloud has {num_points} points, but the groups of its set are of {self.about.num_points}; {REMEDY}"
            )
        try:
            index = npy_array(self.data)
        except ValueError as error:
            raise GroupsError(f"{where}: its groups cannot be read: {error}; {REMEDY}") from None
        if index.dtype != self.about.dtype or list(index.shape) != self.about.shape:
            raise GroupsError(
                f"{where}: holds groups {list(index.shape)} of {index.dtype}, its manifest says {self.about.shape} of {self.about.dtype}; {REMEDY}"
            )
        if index.max() >= num_points:
            raise GroupsError(
                f"{where}: its groups name point {index.max()}, but its cloud has points 0 to {num_points - 1}; {REMEDY}"
            )
        return index


def stored_groups(data: bytes | None, about: GroupSet | None, where: str) -> StoredGroups | None:
    """What a record holds beside its cloud, and what its manifest says of it; none where the manifest says nothing.

    Raises:
        GroupsError: the manifest says that it has groups, and it has none.
    """
    if about is None:
        return None
    if data is None:
        raise GroupsError(f"{where}: has no member {EXTENSION}, but its manifest says groups; {REMEDY}")
    return StoredGroups(data, about)


def encode_groups(index: NDArray[np.integer], about: GroupSet) -> bytes:
    """[G, 1 + K] as the bytes of ``KEY.groups.npy``."""
    assert list(index.shape) == about.shape, (index.shape, about)
    return npy_bytes(index, about.dtype)
