"""The Objaverse converter on hand-made raw files: true formats, every reason of rejection, clear errors."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.data.prepare import cap3d, objaverse, object_splits
from rb.sources.points import decode_points
from tests.support.raw_data import convert, found, reasons


def cloud(n=600, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)) * 274 + 1000


def npz(array, **arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **(arrays or {"arr_0": array}))
    return stream.getvalue()


def objaverse_raw(folder: Path, captions: str, clouds: dict[str, bytes | np.ndarray], lists=None):
    folder.mkdir()
    (folder / "Cap3D_automated_Objaverse.csv").write_bytes(captions.encode("utf-8", "surrogateescape"))
    for uid, data in clouds.items():
        place = folder / "objaverse_pc_parallel" / uid
        place.mkdir(parents=True)
        (place / f"{uid}_8192.npz").write_bytes(data if isinstance(data, bytes) else npz(data))
    for split, uids in (lists or {}).items():
        (folder / f"{split}.txt").write_text("\n".join(uids) + "\n")
    return folder


def uid(k):
    return f"{k:032x}"


def test_objaverse_true_formats(tmp_path):
    texts = ["a cube", "a red, small cube, and a ball", 'a 12" pipe', 'the "big" one, left', "naïve\ncone"]
    stream = io.StringIO()
    csv.writer(stream).writerows([[uid(k), t] for k, t in enumerate(texts)])
    captions = stream.getvalue() + f"{uid(5)},x,y unquoted\n" + f'{uid(6)},a 3" bolt without quotes\n'
    kinds = [np.float64, np.float32, np.float16, ">f8", np.float64, np.float64, np.float64]
    clouds = {uid(k): npz(cloud(seed=k).astype(kind)) for k, kind in enumerate(kinds)}
    raw = objaverse_raw(tmp_path / "raw", captions, clouds, {"val": [uid(3)]})
    tally = convert(objaverse, raw, tmp_path / "out", "train")
    records = found(tmp_path / "out")
    assert tally.used == 6
    assert [item.record.captions for item in records.values()] == [
        ["a cube"],
        ["a red, small cube, and a ball"],
        ['a 12" pipe'],
        ["naïve cone"],
        ["x,y unquoted"],
        ['a 3" bolt without quotes'],
    ]
    points = decode_points(records[f"objaverse/{uid(0)}"].media, "x")
    np.testing.assert_array_equal(points, cloud(seed=0).astype(np.float32))  # raw units
    convert(objaverse, raw, tmp_path / "val", "val")
    assert found(tmp_path / "val")[f"objaverse/{uid(3)}"].record.captions == ['the "big" one, left']


def test_objaverse_flat_npy_with_colour(tmp_path):
    raw = objaverse_raw(tmp_path / "raw", f"{uid(1)},a cube\n", {})
    (raw / "8192_npy").mkdir()
    array = np.asfortranarray(cloud(600, 6).astype(np.float32))
    array[:, 3:] = np.random.default_rng(1).random((600, 3))
    np.save(raw / f"8192_npy/{uid(1)}_8192.npy", array)
    convert(objaverse, raw, tmp_path / "out", "train")
    points = decode_points(found(tmp_path / "out")[f"objaverse/{uid(1)}"].media, "x")
    np.testing.assert_array_equal(points, array)


def test_objaverse_rejects(tmp_path):
    bad = cloud()
    bad[3, 1] = np.inf
    huge = cloud()
    huge[0, 0] = 1e300  # not finite in float32
    lying = io.BytesIO()
    np.lib.format.write_array_header_1_0(lying, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    liar = io.BytesIO()
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("arr_0.npy", lying.getvalue() + b"\0" * 40)
    pickled = np.empty((600, 3), dtype=object)
    clouds = {
        uid(1): cloud(),
        uid(2): cloud(),  # empty caption
        uid(3): cloud(),  # no row
        uid(5): bad,
        uid(6): huge,
        uid(7): cloud(100),
        uid(8): np.ones((600, 3)),
        uid(9): npz(cloud())[:500],
        uid(10): npz(None, arr_1=cloud()),
        uid(11): npz(cloud(600, 4)),
        uid(12): npz(np.ones((600, 3), int)),
        uid(13): npz(pickled),
        uid(14): liar.getvalue(),
        uid(15): b"",
    }
    rows = "".join(f"{uid(k)},a cube\n" for k in range(1, 16) if k not in (2, 3)) + f"{uid(2)},...\n"
    rows += (
        f"{uid(1)},another\n"
        + "only-a-uid\n"
        + f'{uid(20)},"never closed\n'
        + f"{uid(21)},behind it\n"
        + "../../x,evil\n"
    )
    uids = [uid(k) for k in (*range(1, 16), 21)] + ["../../x"]
    clouds[uid(21)] = cloud(seed=2)
    raw = objaverse_raw(tmp_path / "raw", rows, clouds, {"train": uids})
    tally = convert(objaverse, raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {
        "no_caption": 2,
        "points_missing": 1,
        "points_not_finite": 2,
        "too_few_points": 1,
        "points_degenerate": 2,
        "points_unreadable": 6,
        "duplicate_source": 1,
        "malformed_row": 2,
        "unsafe_name": 1,
    }
    assert tally.read == 17 + 1 + 2
    assert list(found(tmp_path / "out")) == [f"objaverse/{uid(1)}", f"objaverse/{uid(21)}"]
    assert convert(objaverse, raw, tmp_path / "few", "train", min_points=50).used == 3


def test_an_open_quote_costs_one_line_only(tmp_path):
    file = tmp_path / "c.csv"
    file.write_bytes(
        b'\xef\xbb\xbf11111111,"a\n22222222,b\n\n33333333,"c, with ""d""\nand e"\n44444444,caf\xe9\n55555555,"open'
    )
    table = cap3d.read_captions(file, Counter())
    assert table.captions == {"22222222": "b", "33333333": 'c, with "d"\nand e', "44444444": "caf\xe9"}
    assert [line for line, _ in table.malformed] == [1, 7]


def test_a_line_of_a_quoted_caption_that_looks_like_a_row_belongs_to_it(tmp_path):
    """What decides: a uid of the file's own form begins a row; a quote that is closed by a row's opening quote never was."""
    file = tmp_path / "c.csv"
    file.write_text(
        f'{uid(1)},"a table\nfurniture, ""brown"", x"\n{uid(2)},"open\n{uid(3)},"next, one"\n'
        'chair_0001,"open\nsofa_0002b,"b, c"\nstool,"three\n\nhigh_legs,red"\n'
    )
    table = cap3d.read_captions(file, Counter())
    assert table.captions == {
        uid(1): 'a table\nfurniture, "brown", x',
        uid(3): "next, one",
        "sofa_0002b": "b, c",
        "stool": "three\n\nhigh_legs,red",
    }
    assert [line for line, _ in table.malformed] == [3, 5]


def choose(raw, split, uids, val=0):
    return object_splits.choose_uids(raw, split, uids, object_splits.read_lists(raw, Counter()), val)


def test_objaverse_splits(tmp_path):
    uids = [uid(k) for k in range(2000)]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "test.txt").write_text(f"{uids[5]}\n{uids[5]}\n\n{uids[3]}\n")
    assert choose(raw, "test", uids) == [uids[5], uids[3]]
    assert choose(raw, "train", uids) == [u for u in uids if u not in (uids[3], uids[5])]
    with pytest.raises(ValueError, match=r"val\.txt: not found, though there is test\.txt"):
        choose(raw, "val", uids)
    (raw / "train.txt").write_text(f"{uids[3]}\n")
    with pytest.raises(ValueError, match="1 uids are in both"):
        choose(raw, "test", uids)


def test_without_lists_20_000_objects_are_drawn_for_testing(tmp_path):
    """The smallest hashes: whatever the order of the captions; a set below 40,000 gives 3 %."""
    uids = [f"object{k}" for k in range(40_000)]
    test = choose(tmp_path, "test", uids)
    assert len(test) == 20_000
    assert set(choose(tmp_path, "test", uids[::-1])) == set(test)
    train = choose(tmp_path, "train", uids)
    assert sorted(test + train) == sorted(uids)
    assert train != uids[20_000:]
    with pytest.raises(
        ValueError, match=r"val\.txt: not found, and no objects are drawn for validation; say --val N to draw some"
    ):
        choose(tmp_path, "val", uids)
    few = uids[:1001]
    splits = {split: choose(tmp_path, split, few, val=10) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 961, "val": 10, "test": 30}
    assert sorted(u for found in splits.values() for u in found) == sorted(few)
    assert splits["test"] == choose(tmp_path, "test", few)  # validation comes from training
    with pytest.raises(ValueError, match="--val 999: there are 1,001 objects, 30 of them for testing; choose fewer"):
        choose(tmp_path, "val", few, val=999)
    assert [object_splits.drawn_for_testing(n) for n in (0, 1, 2, 99, 39_999)] == [0, 0, 1, 2, 1199]


def test_an_empty_result_names_the_files(tmp_path):
    """A TSV under the CSV's name, clouds of another kind, a uid without a row, and an empty table: each with its path."""
    raw = objaverse_raw(
        tmp_path / "raw", f"{uid(1)},a cube\n{uid(3)}\ta ball\n", {uid(1): b""}, {"train": [uid(1), uid(2)]}
    )
    folder = raw / "objaverse_pc_parallel" / uid(1)
    (folder / f"{uid(1)}_8192.npz").rename(folder / f"{uid(1)}.glb")
    with pytest.raises(ValueError, match="malformed_row: 1, no_caption: 1, points_missing: 1") as caught:
        convert(objaverse, raw, tmp_path / "out", "train")
    table = raw / "Cap3D_automated_Objaverse.csv"
    assert f"line 2: malformed_row: {table}, line 2: not 'uid,caption'" in str(caught.value)
    assert f"no {folder}/{uid(1)}_8192.npz" in str(caught.value)
    assert f"; there is {uid(1)}.glb: save it as .npy" in str(caught.value)
    assert f"no_caption: {table}: no row of this uid" in str(caught.value)
    table.write_text("")
    (raw / "train.txt").unlink()
    with pytest.raises(ValueError, match=r"Cap3D_automated_Objaverse\.csv: holds no row 'uid,caption'"):
        convert(objaverse, raw, tmp_path / "empty", "train")


def test_objaverse_wrong_calls_are_clear_errors(tmp_path):
    raw = objaverse_raw(tmp_path / "raw", f"{uid(1)},a cube\n", {uid(1): cloud(10)}, {"train": [uid(1)]})
    with pytest.raises(ValueError, match=r"no record could be used \(too_few_points: 1\)"):
        convert(objaverse, raw, tmp_path / "out", "train")
    with pytest.raises(ValueError, match="min_points must be at least 1"):
        convert(objaverse, raw, tmp_path / "out", "train", min_points=0)
    (raw / "Cap3D_automated_Objaverse.csv").rename(raw / "a.csv")
    (raw / "b.csv").write_text("")
    with pytest.raises(ValueError, match=r"a\.csv, b\.csv.*--captions"):
        convert(objaverse, raw, tmp_path / "out", "train")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.jsonl"]
