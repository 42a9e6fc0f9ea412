"""From the stages' files to a set: what is left out, that it is counted, that the set trains, that kills and full disks change nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.core.files import file_sha256
from rb.data.formats import read_manifest
from rb.data.index import ManifestReader
from rb.data.shard_writer import ShardWriter
from rb.data.shards import verify_shards
from rb.mining.finish import SAME_ID, SAME_PICTURE, Finished, finish
from rb.mining.inputs import InputShard, find_inputs
from rb.mining.language import OTHER_LANGUAGE, OTHER_SCRIPT, LanguageRule, foreign_share
from rb.mining.near import later_duplicates
from rb.mining.record import ImageRecord, Region, parse_records
from rb.mining.screen import EVALUATION, NO_CAPTION, SCREEN, TWICE, Screen
from rb.mining.settings import FinishConfig, ScreenConfig
from rb.mining.stage import Stage, made_of, run_stage
from rb.mining.work import Made
from tests.support.mined import ColourWords, Segments, drawn, input_tars, write_tar


def mine(
    out: Path, shards: list[InputShard], settings: FinishConfig | None = None, against: list[Path] | None = None
) -> Finished:
    stages = [Segments(), ColourWords(), Screen(ScreenConfig(), against or [])]
    before = None
    for stage in stages:
        for shard in shards:
            run_stage(stage, shard, out, before)
        before = stage.name
    return finish(out, shards, SCREEN, settings or FinishConfig())[0]


def tree(folder: Path) -> dict[str, str]:
    """Digests of what finish writes."""
    return {path.name: file_sha256(path) for path in [*sorted((folder / "shards").glob("*")), folder / "mined.jsonl"]}


def history(out: Path) -> list[ImageRecord]:
    return parse_records((out / "mined.jsonl").read_bytes(), "mined.jsonl")


def test_the_set_holds_what_was_kept_and_the_history_the_rest(tmp_path: Path) -> None:
    shards = input_tars(tmp_path / "in", 3, 4)
    done = mine(tmp_path / "out", shards)
    manifest = verify_shards(tmp_path / "out" / "shards")
    records = history(tmp_path / "out")
    kept = {f"{r.key}": list(r.kept) for r in records if r.kept}
    assert (manifest.modality, manifest.exif, manifest.counts["records"]) == ("image_region", "upright", len(kept))
    assert done.regions == sum(map(len, kept.values())) == manifest.counts["objects"]
    assert done.words == 7 * done.regions
    assert len(records) == 12
    assert {r.dropped.reason for record in records for r in record.regions if r.dropped} >= {"too large"}
    reader = ManifestReader(tmp_path / "out" / "shards")
    for record, stored in reader.records():
        assert [item.captions for item in record.objects] == [[region.caption] for region in kept[record.source_id]]
        assert [item.box for item in record.objects] == [region.box for region in kept[record.source_id]]
        assert Image.open(io.BytesIO(stored.media)).size == record.size
    assert finish(tmp_path / "out", shards, SCREEN, FinishConfig()) == (done, False)


def test_pictures_and_ids_that_come_twice_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    smaller = io.BytesIO()
    Image.open(io.BytesIO(drawn(1, 96))).resize((64, 64)).save(smaller, "PNG")
    write_tar(tmp_path / "a" / "0.tar", [("one", drawn(1, 96)), ("two", drawn(2, 96))])
    write_tar(tmp_path / "a" / "1.tar", [("one", drawn(3, 96)), ("three", smaller.getvalue()), ("four", drawn(4, 96))])
    shards = find_inputs([str(tmp_path / "a")])
    done = mine(tmp_path / "out", shards)
    reasons = {
        record.key: {r.dropped.reason for r in record.regions if r.dropped and r.dropped.stage == "finish"}
        for record in history(tmp_path / "out")
    }
    assert [reason for reason in map(sorted, reasons.values()) if reason] or done.dropped
    assert set(done.dropped) == {SAME_ID, SAME_PICTURE}
    kept = [record.source_id for record, _ in ManifestReader(tmp_path / "out" / "shards").records()]
    assert kept == ["a/one", "a/two", "a/four"]


def test_images_of_an_evaluation_set_are_left_out_by_id_and_by_look(tmp_path: Path) -> None:
    shards = input_tars(tmp_path / "in", 1, 4)
    mine(tmp_path / "first", shards)
    held = read_manifest(tmp_path / "first" / "shards").counts["records"]
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", [("x", drawn(2))])  # the third picture under another id
    mine(tmp_path / "evaluation", find_inputs([str(tmp_path / "test")]))
    done = mine(tmp_path / "out", shards, against=[tmp_path / "evaluation" / "shards"])
    assert done.images == held - 1
    dropped = [
        record.key
        for record in history(tmp_path / "out")
        if any(r.dropped and r.dropped.reason == EVALUATION for r in record.regions)
    ]
    assert dropped == ["in/000000002"]
    with pytest.raises(ValueError, match="no region is left"):
        mine(tmp_path / "nothing", shards, against=[tmp_path / "first" / "shards"])


class Says(Stage):
    """Test captions, the same for every image."""

    name = "describe"

    def __init__(self, *texts: str | None) -> None:
        super().__init__({"texts": list(texts)})

    def run(self, shard: InputShard, before: list[ImageRecord]) -> Made:
        records = []
        for image in shard.images():
            regions = [
                Region(f"{image.key}:{i}", [0.0, 0.0, 20.0 + i, 20.0], "-", 9, text=text)
                for i, text in enumerate(self.config["texts"])
            ]
            records.append(ImageRecord(image.key, 48, 48, regions=regions))
        return made_of(records)


def test_what_screen_drops(tmp_path: Path) -> None:
    texts = (
        "mom in white",
        "红色的车",
        "ein roter Wagen steht vor dem alten Haus",
        "Mom in white.",
        None,
        "café table",
        "...",
    )
    (shard,) = input_tars(tmp_path / "in", 1, 1)
    run_stage(Says(*texts), shard, tmp_path / "out", None)
    done, _ = run_stage(Screen(ScreenConfig()), shard, tmp_path / "out", "describe")
    (record,) = parse_records((tmp_path / "out" / SCREEN / "00000.jsonl").read_bytes(), "screen")
    reasons = [region.dropped and region.dropped.reason for region in record.regions]
    assert reasons == [None, OTHER_SCRIPT, OTHER_LANGUAGE, TWICE, NO_CAPTION, None, NO_CAPTION]
    assert done.taken == 1


def test_short_english_phrases_pass_the_language_rule() -> None:
    rule = LanguageRule(0.0, 0.8)
    english = [
        "mom in white",
        "left horse",
        "guy on right",
        "red umbrella",
        "second from left",
        "a man riding a wave",
        "pizza slice",
        "blue car",
    ]
    foreign = [
        "una mujer con un paraguas rojo",
        "ein Mann auf einem Pferd am Strand",
        "un homme avec un chapeau noir",
        "человек в шляпе",
        "赤い傘を持つ女性",
    ]
    assert [text for text in english if rule.problem(text)] == []
    assert [text for text in foreign if not rule.problem(text)] == []
    assert foreign_share("naïve café №5") == 0.0


def test_looks_are_compared_as_one_by_one() -> None:
    draws = np.random.default_rng(0)
    for density in (0.5, 0.05):
        looks = np.packbits(draws.random((200, 256)) < density, axis=1)
        for _ in range(80):
            one, other = draws.integers(0, 200, 2)
            bits = np.unpackbits(looks[one])
            bits[draws.integers(0, 256, draws.integers(0, 12))] ^= 1
            looks[other] = np.packbits(bits)
        stays: list[int] = []
        for number, look in enumerate(looks):
            differing = [np.bitwise_count(look ^ looks[earlier]).sum() for earlier in stays]
            either = [np.bitwise_count(look | looks[earlier]).sum() for earlier in stays]
            if not any(bits <= min(8, both / 8) for bits, both in zip(differing, either, strict=True)):
                stays.append(number)
        assert np.flatnonzero(~later_duplicates(looks, 8)).tolist() == stays


def test_a_full_disk_ends_it_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = input_tars(tmp_path / "in", 2, 6)
    small = FinishConfig(max_shard_bytes=15_000)
    mine(tmp_path / "right", shards, small)
    real = ShardWriter._append

    def full(self: ShardWriter, data: bytes) -> None:
        if self.num_records > 5:
            raise OSError(28, "No space left on device")
        real(self, data)

    monkeypatch.setattr(ShardWriter, "_append", full)
    with pytest.raises(OSError, match="No space left"):
        mine(tmp_path / "out", shards, small)
    assert not (tmp_path / "out" / "finish.done").exists()
    monkeypatch.undo()
    unfinished = tmp_path / "out" / ".shards.unfinished"
    assert (unfinished / "state.json").is_file()
    assert len(list(unfinished.glob("*.tar"))) > 1
    mine(tmp_path / "out", shards, small)
    assert tree(tmp_path / "out") == tree(tmp_path / "right")
    assert len(read_manifest(tmp_path / "out" / "shards").shards) > 2
    assert json.loads((tmp_path / "out" / "finish.done").read_text()) == json.loads(
        (tmp_path / "right" / "finish.done").read_text()
    )
