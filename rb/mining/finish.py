"""The last step, over all shards: images that come twice are left out, then mined.jsonl, and the set of image regions that ``rb train`` reads.

Everything that needs one image at a time was done by stages. This step reads their last files three times, one at a time: to find what comes twice
(49 bytes a mined image are held), to copy them into the history of every region, and to write the set. Each file is written whole or not at all. The
set goes on after a kill behind its last closed shard, with the same bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core import progress, strict_json
from rb.core.files import digest64, file_sha256, sha256, whole_file, write_json
from rb.core.modality import IMAGE_REGION
from rb.core.strict_json import dumps, lines
from rb.core.text import is_caption
from rb.data.formats import MANIFEST_FILE, ObjectAnnotation, Record, UnfitRecordError, read_manifest
from rb.data.prepare.common import Reason
from rb.data.shard_writer import ShardWriter
from rb.data.unfinished import Work
from rb.mining.inputs import InputImage, InputShard
from rb.mining.near import LOOK_BYTES, later_duplicates
from rb.mining.record import ImageRecord, Region, parse_record, read_records, write_records
from rb.mining.settings import FinishConfig
from rb.mining.stage import stage_file
from rb.sources.pixels import AS_UPRIGHT

FINISH = "finish"
SHARDS_FOLDER, HISTORY_FILE, RECORD_FILE = "shards", "mined.jsonl", "finish.done"
SAME_ID, SAME_PICTURE = "source id of an earlier image", "looks as an earlier image"
_WRITTEN, _EMPTY = 0, 1  # what becomes of an image, beside the numbers of these reasons
_REASONS = {2: SAME_ID, 3: SAME_PICTURE}
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
    """What becomes of every image, in the order of inputs: it is written, it had no region left before this step, or it comes twice.

    Attributes:
        fates: of each image [N].
        begins: number of the first image of each shard, and one more behind the last.
        words: of all captions that are written.
        dropped: regions that are dropped here, by reason.
    """

    fates: NDArray[np.uint8]
    begins: Sequence[int]
    words: int
    dropped: Mapping[str, int]

    def lines(self, place: int, file: Path) -> Iterator[tuple[str, bytes, int]]:
        """(file and line, its bytes, fate) of every image in the last stage's file of the shard at this place."""
        fates = self.fates[self.begins[place] : self.begins[place + 1]].tolist()
        for (where, line), fate in zip(lines(file.read_bytes(), str(file)), fates, strict=True):
            yield where, line, fate

    def written(self, place: int) -> int:
        """Images of the shard at this place that are written."""
        return int((self.fates[self.begins[place] : self.begins[place + 1]] == _WRITTEN).sum())


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
    if not (plan.fates == _WRITTEN).any():
        raise ValueError(f"{out}: no region is left, so there is no set to write")
    _write_history(out / HISTORY_FILE, files, plan)
    _write_set(out / SHARDS_FOLDER, shards, files, plan, settings, dataset, wanted)
    manifest = out / SHARDS_FOLDER / MANIFEST_FILE
    counts = read_manifest(manifest).counts
    done = Finished(
        **wanted,
        manifest=file_sha256(manifest),
        history_bytes=(out / HISTORY_FILE).stat().st_size,
        images=counts["records"],
        regions=counts["objects"],
        words=plan.words,
        dropped=plan.dropped,
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
    keys, looks, left, words, begins = array("Q"), bytearray(), array("I"), array("I"), [0]
    for file in progress.bar(files, desc="looking for images that come twice", unit="shard", delay=5):
        for record in read_records(file):
            kept = record.kept
            left.append(len(kept))
            words.append(sum(len(_caption(region).split()) for region in kept))
            if kept:
                assert record.look is not None, f"{file}: {record.key} was not looked at by stage screen"
                keys.append(digest64(record.key.encode()))
                looks += bytes.fromhex(record.look)
        begins.append(len(left))
    regions, counts = np.frombuffer(left, np.uint32), np.frombuffer(words, np.uint32)
    fates = np.where(regions > 0, _WRITTEN, _EMPTY).astype(np.uint8)
    fates[fates == _WRITTEN] = _twice(np.frombuffer(keys, np.uint64), looks, near_bits)
    dropped = {reason: int(regions[fates == fate].sum()) for fate, reason in _REASONS.items()}
    return _Plan(
        fates, begins, int(counts[fates == _WRITTEN].sum()), {reason: n for reason, n in sorted(dropped.items()) if n}
    )


def _twice(keys: NDArray[np.uint64], looks: bytearray, near_bits: int) -> NDArray[np.uint8]:
    """The fate of every image with a region left, by its key and its look."""
    same_id, same_picture = _REASONS
    fates = np.full(len(keys), same_id, np.uint8)
    fates[np.unique(keys, return_index=True)[1]] = _WRITTEN
    own = np.flatnonzero(fates == _WRITTEN)
    table = np.frombuffer(looks, np.uint8).reshape(-1, LOOK_BYTES)[own]
    fates[own[later_duplicates(table, near_bits)]] = same_picture
    return fates


def _write_history(target: Path, files: Sequence[Path], plan: _Plan) -> None:
    """mined.jsonl: all last files one after another, with what is dropped here."""
    with whole_file(target) as temporary, temporary.open("wb") as history:
        for place, file in enumerate(progress.bar(files, desc=target.name, unit="shard", delay=5)):
            for where, line, fate in plan.lines(place, file):
                history.write(_left_out(line, where, _REASONS[fate]) if fate in _REASONS else line + b"\n")


def _left_out(line: bytes, where: str, reason: str) -> bytes:
    """The line of an image whose regions are dropped here."""
    record = parse_record(line, where)
    for region in record.kept:
        region.drop(FINISH, reason)
    return write_records([record])


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
            if position + plan.written(place) <= skip:  # by an earlier process
                position += plan.written(place)
                continue
            records = (
                parse_record(line, where) for where, line, fate in plan.lines(place, files[place]) if fate == _WRITTEN
            )
            wanted = {record.key: record for record in records}
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
