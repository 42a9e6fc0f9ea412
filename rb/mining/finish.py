"""The last step, over all shards: images that come twice are left out, then mined.jsonl, and the set of image regions that ``rb train`` reads.

Everything that needs one image at a time was done by stages. This step reads their last files three times, one at a time: to find what comes twice
(40 bytes a mined image are held), to write the history of every region, and to write the set. Each file is written whole or not at all. The set
goes on after a kill behind its last closed shard, with the same bytes.
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core import progress, strict_json
from rb.core.files import digest64, file_sha256, sha256, whole_file, write_json
from rb.core.modality import IMAGE_REGION
from rb.core.strict_json import dumps
from rb.core.text import is_caption
from rb.data.formats import MANIFEST_FILE, ObjectAnnotation, Record, UnfitRecordError, read_manifest
from rb.data.prepare.common import Reason
from rb.data.shard_writer import ShardWriter
from rb.data.unfinished import Work
from rb.mining.inputs import InputImage, InputShard
from rb.mining.near import LOOK_BYTES, later_duplicates
from rb.mining.record import ImageRecord, Region, read_records, write_records
from rb.mining.settings import FinishConfig
from rb.mining.stage import stage_file
from rb.sources.pixels import AS_UPRIGHT

FINISH = "finish"
SHARDS_FOLDER, HISTORY_FILE, RECORD_FILE = "shards", "mined.jsonl", "finish.done"
SAME_ID, SAME_PICTURE = "source id of an earlier image", "looks as an earlier image"
_REASONS = (None, SAME_ID, SAME_PICTURE)  # by number, as the plan holds them
_FIELDS: dict[str, strict_json.Check] = {
    "config": strict_json.name,
    "source": strict_json.name,
    "manifest": strict_json.name,
    "history_bytes": strict_json.count,
    "images": strict_json.count,
    "regions": strict_json.count,
    "words": strict_json.count,
    "dropped": strict_json.counts,
}


@dataclass(frozen=True)
class Finished:
    """``finish.done``: what the set was made of, and what is in it.

    Attributes:
        config, source: sha256 of the settings, and of the inputs with the last stage's files.
        manifest: sha256 of the set's manifest, which holds the digests of all other files.
        history_bytes: size of mined.jsonl.
        words: of all captions.
        dropped: regions by reason.
    """

    config: str
    source: str
    manifest: str
    history_bytes: int
    images: int
    regions: int
    words: int
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class _Plan:
    """For every image with a region left, in the order of inputs: why it is left out (0: it is not; a number of ``_REASONS``)."""

    why: NDArray[np.uint8]
    begins: Sequence[int]  # number of the first such image of each shard, and one more behind the last

    def of(self, place: int) -> NDArray[np.uint8]:
        """Those of the shard at this place."""
        return self.why[self.begins[place] : self.begins[place + 1]]


def finish(
    out: Path, shards: Sequence[InputShard], last: str, settings: FinishConfig, dataset: str = "mined"
) -> tuple[Finished, bool]:
    """Make ``OUT/mined.jsonl`` and the set in ``OUT/shards``, unless they are made of the same. The caller holds ``alone_in``.

    Args:
        shards: all inputs.
        last: name of the last stage, which looked at every image (``screen``).
        dataset: name of the set.

    Returns:
        the record, and whether it was made just now.

    Raises:
        ValueError: no region is left.
        CannotWriteError: the file system takes no more; finished shards of the set stay, and the same call goes on.
    """
    files = [stage_file(out, last, shard.number) for shard in shards]
    source = sha256("".join(f"{shard.digest} {file_sha256(file)};" for shard, file in zip(shards, files, strict=True)))
    wanted = {"config": sha256(dumps({**asdict(settings), "dataset": dataset})), "source": source}
    done = read_finished(out)
    if done and all(getattr(done, field) == digest for field, digest in wanted.items()) and _is_whole(out, done):
        return done, False
    (out / RECORD_FILE).unlink(missing_ok=True)
    plan = _plan(files, settings.near_bits)
    if not (plan.why == 0).any():
        raise ValueError(f"{out}: no region is left, so there is no set to write")
    words, dropped = _write_history(out / HISTORY_FILE, files, plan)
    _write_set(out / SHARDS_FOLDER, shards, files, plan, settings, dataset, wanted)
    manifest = out / SHARDS_FOLDER / MANIFEST_FILE
    counts = read_manifest(manifest).counts
    done = Finished(
        **wanted,
        manifest=file_sha256(manifest),
        history_bytes=(out / HISTORY_FILE).stat().st_size,
        images=counts["records"],
        regions=counts["objects"],
        words=words,
        dropped=dropped,
    )
    write_json(out / RECORD_FILE, asdict(done))
    return done, True


def read_finished(out: Path) -> Finished | None:
    """``OUT/finish.done``; none where it is missing or damaged (then the step is done again)."""
    file = out / RECORD_FILE
    try:
        return Finished(**strict_json.checked(strict_json.read(file), str(file), _FIELDS))
    except (OSError, strict_json.FormatError):
        return None


def _is_whole(out: Path, done: Finished) -> bool:
    history, manifest = out / HISTORY_FILE, out / SHARDS_FOLDER / MANIFEST_FILE
    return (
        history.is_file()
        and history.stat().st_size == done.history_bytes
        and manifest.is_file()
        and file_sha256(manifest) == done.manifest
    )


def _plan(files: Sequence[Path], near_bits: int) -> _Plan:
    keys, looks, begins = array("Q"), bytearray(), [0]
    for file in progress.bar(files, desc="looking for images that come twice", unit="shard", delay=5):
        for record in read_records(file):
            if record.kept:
                assert record.look is not None, f"{file}: {record.key} was not looked at by stage screen"
                keys.append(digest64(record.key.encode()))
                looks += bytes.fromhex(record.look)
        begins.append(len(keys))
    ids = np.frombuffer(keys, np.uint64)
    why = np.full(len(ids), _REASONS.index(SAME_ID), np.uint8)
    why[np.unique(ids, return_index=True)[1]] = 0
    own = np.flatnonzero(why == 0)
    table = np.frombuffer(looks, np.uint8).reshape(-1, LOOK_BYTES)[own]
    why[own[later_duplicates(table, near_bits)]] = _REASONS.index(SAME_PICTURE)
    return _Plan(why, begins)


def _records(file: Path, why: NDArray[np.uint8]) -> Iterator[ImageRecord]:
    """All records of a last stage's file, in which regions of images that are left out are dropped."""
    number = 0
    for record in read_records(file):
        if record.kept:
            reason = _REASONS[int(why[number])]
            number += 1
            for region in record.kept if reason else ():
                region.drop(FINISH, str(reason))
        yield record


def _write_history(target: Path, files: Sequence[Path], plan: _Plan) -> tuple[int, dict[str, int]]:
    """mined.jsonl: all last files one after another. Returns the words of all captions that are left, and regions dropped here by reason."""
    words, dropped = 0, Counter[str]()
    with whole_file(target) as temporary, temporary.open("wb") as history:
        for place, file in enumerate(progress.bar(files, desc=target.name, unit="shard", delay=5)):
            records = list(_records(file, plan.of(place)))
            for record in records:
                words += sum(len(_caption(region).split()) for region in record.kept)
                dropped.update(r.dropped.reason for r in record.regions if r.dropped and r.dropped.stage == FINISH)
            if plan.of(place).any():
                history.write(write_records(records))
            else:  # nothing is added: the same bytes
                with file.open("rb") as same:
                    shutil.copyfileobj(same, history)
    return words, dict(sorted(dropped.items()))


def _write_set(
    folder: Path,
    shards: Sequence[InputShard],
    files: Sequence[Path],
    plan: _Plan,
    settings: FinishConfig,
    dataset: str,
    about: Mapping[str, str],
) -> None:
    work = Work({"made by": "rb mine", **about})
    if work.made(folder):
        return
    with ShardWriter(
        folder,
        dataset,
        IMAGE_REGION,
        settings.split,
        settings.max_shard_bytes,
        overwrite=True,
        exif=AS_UPRIGHT,
        work=work,
    ) as writer:
        earlier = writer.begin()
        position, skip = 0, 0 if earlier is None else earlier.position
        bar = progress.bar(shards, desc="writing the set", unit="shard", delay=5)
        for place, shard in enumerate(bar):
            left = int((plan.of(place) == 0).sum())
            if position + left <= skip:  # an earlier process wrote them all
                position += left
                continue
            wanted = {record.key: record for record in _records(files[place], plan.of(place)) if record.kept}
            for image in shard.images():
                record = wanted.pop(image.key, None) if isinstance(image, InputImage) else None
                if record is None or not isinstance(image, InputImage):
                    continue
                position += 1
                if position > skip:
                    _write_image(writer, position - 1, record, image, dataset, settings.split)
            assert not wanted, f"{shard.path}: lacks {len(wanted)} images that its stage files name"


def _write_image(
    writer: ShardWriter, position: int, record: ImageRecord, image: InputImage, dataset: str, split: str
) -> None:
    writer.mark(position, {})
    source = record.key.replace("#", "%23")  # has a meaning in sample ids, so it is written as in addresses
    whole = [record.caption] if record.caption and is_caption(record.caption) else []
    objects = [
        ObjectAnnotation(region.id.rpartition(":")[2], list(region.box), [_caption(region)]) for region in record.kept
    ]
    if writer.holds(source):  # another id became the same
        writer.reject(source, Reason.DUPLICATE_SOURCE, f"{record.key} and an earlier image have one source id")
        return
    made = Record(source, dataset, split, record.width, record.height, whole, objects)
    try:
        writer.write(made, image.data, image.extension)
    except UnfitRecordError as error:
        writer.reject(source, Reason.RECORD_UNFIT, str(error))


def _caption(region: Region) -> str:
    assert region.caption is not None, f"{region.id} was kept without a caption"
    return region.caption
