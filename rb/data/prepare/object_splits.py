"""The splits of Objaverse: published lists of uids, and where there are none a draw that takes 20,000 objects for testing, as the paper does.

Whether an object's points are there does not change its split.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rb.core.seeding import hash_key
from rb.core.strict_json import parse_foreign
from rb.data.prepare.cap3d import CaptionTable, read_captions
from rb.data.prepare.pointllm import read_descriptions
from rb.data.prepare.raw_text import read_text
from rb.data.prepare.safe_pickle import converted, load_plain_pickle

SPLITS = ("train", "val", "test")
TEST_OBJECTS = 20_000  # the paper's
LARGE = 2 * TEST_OBJECTS
TEST_PERCENT = 3  # of smaller sets; the paper's 20,000 are 3 % of 661,577
# By split, in order: one's own; RegionBLIP's, uid,caption; Cap3D's; PointLLM's (its evaluation objects), the largest first.
_FILES = {
    "train": ("train.txt", "Cap3D_automated_Objaverse_train.txt", "training_set.pkl"),
    "val": ("val.txt", "Cap3D_automated_Objaverse_val.txt", "validation_set.pkl"),
    "test": ("test.txt", "Cap3D_automated_Objaverse_test.txt", "test_uids_2k.pkl", "val_object_ids_3000.txt"),
}
_POINTLLM_TRUTHS = ("PointLLM_brief_description_val_3000_GT.json", "PointLLM_brief_description_val_200_GT.json")
POINTLLM_FOLDER = "anno_data"


@dataclass(frozen=True)
class SplitList:
    """The list of a split: its uids, in order, and the captions where the list holds some (RegionBLIP's, PointLLM's)."""

    files: list[Path]
    uids: list[str]
    captions: CaptionTable | None


def read_lists(raw: Path, notes: Counter[str]) -> dict[str, SplitList]:
    """The lists in ``raw``, by split.

    Raises:
        ValueError: two lists of one split, a damaged list, or a uid in the lists of two splits.
    """
    lists: dict[str, SplitList] = {}
    for split, names in _FILES.items():
        found = [file for name in names for file in _places(raw, name)]
        truth = [file for name in _POINTLLM_TRUTHS for file in _places(raw, name)][:1] if split == "test" else []
        if len(found) > 1:
            raise ValueError(f"{' and '.join(map(str, found))}: two lists of one split; remove one")
        if found and found[0].name == "val_object_ids_3000.txt" and truth:
            captions = _read_list(truth[0], notes).captions
            lists[split] = SplitList([*found, *truth], _read_list(found[0], notes).uids, captions)
        elif found or truth:
            lists[split] = _read_list((found or truth)[0], notes)
    for first, second in itertools.combinations(lists.values(), 2):
        both = set(first.uids) & set(second.uids)
        if both:
            raise ValueError(
                f"{first.files[0]} and {second.files[0]}: {len(both)} uids are in both, such as {min(both)}; keep them in one, or remove a list"
            )
    return lists


def choose_uids(
    raw: Path, split: str, captions: Iterable[str], lists: Mapping[str, SplitList], val: int = 0
) -> list[str]:
    """The uids of a split, in the order of its list or of the captions' file.

    Args:
        val: how many objects are drawn for validation where there are no lists.

    Raises:
        ValueError: the split's list is missing while others are there, or no objects were drawn for validation.
    """
    if split in lists:
        return lists[split].uids
    if lists and split != "train":
        there = ", ".join(one.files[0].name for one in lists.values())
        raise ValueError(f"{raw / split}.txt: not found, though there is {there}; add it, or remove the lists")
    if lists:
        taken = {uid for one in lists.values() for uid in one.uids}
        return [uid for uid in captions if uid not in taken]
    uids = list(captions)
    drawn = sorted(uids, key=lambda uid: (hash_key("objaverse split", uid), uid))
    tests = drawn_for_testing(len(uids))
    if split == "val" and not val:
        raise ValueError(
            f"{raw / split}.txt: not found, and no objects are drawn for validation; say --val N to draw some"
        )
    if tests + val > len(uids):
        raise ValueError(f"--val {val}: there are {len(uids):,} objects, {tests:,} of them for testing; choose fewer")
    begin, end = {"test": (0, tests), "val": (tests, tests + val), "train": (tests + val, None)}[split]
    inside = set(drawn[begin:end])
    return [uid for uid in uids if uid in inside]


def drawn_for_testing(objects: int) -> int:
    """How many of so many objects are drawn for testing where there are no lists."""
    return TEST_OBJECTS if objects >= LARGE else max(objects * TEST_PERCENT // 100, min(1, objects - 1), 0)


def _places(raw: Path, name: str) -> list[Path]:
    """``name`` in the raw folder, or in PointLLM's folder of annotations there."""
    return [file for file in (raw / name, raw / POINTLLM_FOLDER / name) if file.is_file()][:1]


def _read_list(file: Path, notes: Counter[str]) -> SplitList:
    if file.suffix == ".json":
        table = read_descriptions(file, notes)
        return SplitList([file], list(table.captions), table)
    if file.suffix == ".pkl":
        trusted, remedy = converted(file), f"remove it, and {file.name} is read again"
        files = [file, trusted] if trusted.is_file() else [file]
        uids = (
            parse_foreign(read_text(trusted, notes), str(trusted), remedy=remedy)
            if trusted in files
            else load_plain_pickle(file)
        )
        if not isinstance(uids, list | tuple | set | frozenset) or not all(isinstance(uid, str) for uid in uids):
            raise ValueError(f"{file}: must be a pickled list of uids; download it again")
        ordered = sorted(uids) if isinstance(uids, set | frozenset) else uids
        return SplitList(files, list(dict.fromkeys(ordered)), None)
    lines = [line.strip() for line in read_text(file, notes).splitlines() if line.strip()]
    if lines and "," in lines[0]:
        table = read_captions(file, Counter())
        return SplitList([file], list(table.captions), table)
    return SplitList([file], list(dict.fromkeys(lines)), None)
