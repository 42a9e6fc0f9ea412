"""Files of clouds: colours of both ranges, several files of one object, names that end in a number, RegionBLIP's lists."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.api.inputs import InputError
from rb.api.inputs import cloud as api_cloud
from rb.core.colours import unit_colours
from rb.data.formats import FormatError
from rb.data.prepare import objaverse
from rb.data.prepare.cloud_folder import CloudFolder
from rb.data.prepare.common import RejectedError
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt
from rb.sources.points import decode_points, encode_points
from tests.support.raw_data import convert, found, reasons
from tests.support.small_data import cloud, record


def coloured(points: int, high: float, low: float = 0.0, seed: int = 0) -> np.ndarray:
    """[points, 6] float32 with colours between ``low`` and ``high``, both of which occur."""
    array = cloud(seed, points, 6)
    array[:, 3:] = np.random.default_rng(seed).uniform(low, high, (points, 3))
    array[0, 3:], array[1, 3:] = low, high
    return array


def raw_folder(folder: Path, clouds: dict[str, np.ndarray], captions: str | None = None) -> Path:
    """Clouds by their path below ``8192_npy``, and one caption for every uid."""
    for name, array in clouds.items():
        path = folder / "8192_npy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, array)
        else:
            np.save(path, array)
    if captions is not None:
        (folder / "Cap3D_automated_Objaverse.csv").write_text(captions)
    return folder


def stored(out: Path) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: decode_points(item.media, name) for name, item in found(out).items()}


def test_colours_are_stored_in_0_to_1_or_refused(tmp_path: Path) -> None:
    clouds = {
        "bytes_a.npy": coloured(600, 255.0),
        "share_a.npy": coloured(600, 1.0),
        "normal_a.npy": coloured(600, 1.0, -1.0),
        "sixteen_a.npy": coloured(600, 65535.0),
    }
    uids = [name[:-4] for name in clouds]
    raw = raw_folder(tmp_path / "raw", clouds, "".join(f"{uid},a cube\n" for uid in uids))
    (raw / "train.txt").write_text("\n".join(uids))
    convert(objaverse, raw, tmp_path / "out", "train")
    points = stored(tmp_path / "out")
    assert set(points) == {"bytes_a", "share_a"}
    assert reasons(tmp_path / "out") == {"colours_unclear": 2}
    np.testing.assert_array_equal(points["share_a"], clouds["share_a.npy"])
    np.testing.assert_allclose(points["bytes_a"][:, 3:], clouds["bytes_a.npy"][:, 3:] / 255, rtol=1e-6)
    np.testing.assert_array_equal(points["bytes_a"][:, :3], clouds["bytes_a.npy"][:, :3])


def test_the_range_of_colours() -> None:
    assert unit_colours(np.array([[0.0, 0.5, 1.0000001]], np.float32))[0].max() == 1.0
    assert unit_colours(np.array([[0, 51, 255]]))[0].tolist() == [[0.0, 0.2, 1.0]]
    assert unit_colours(np.zeros((0, 3)))[0].shape == (0, 3)
    for wrong in ([[0.0, 0.0, 256.0]], [[-0.5, 0.0, 1.0]]):
        with pytest.raises(ValueError, match="colours reach from"):
            unit_colours(np.array(wrong))


def test_indexing_foreign_tars_refuses_colours_of_0_to_255(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "x", "point_cloud", "train") as writer:
        writer.write(record("point_cloud", 0), encode_points(coloured(40, 1.0)), "points.npy")
        with pytest.raises(FormatError, match=r"colours reach from 0 to 255; .* divide them by 255"):
            writer.write(record("point_cloud", 1), encode_points(coloured(40, 255.0)), "points.npy")
    (tar,) = (tmp_path / "set").glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(encode_points(coloured(40, 1.0)), encode_points(coloured(40, 255.0))))
    with pytest.raises(FormatError, match=r"key '000000000'.*colours reach from 0 to 255"):
        adopt(tmp_path / "set", "point_cloud", overwrite=True)


def test_of_several_files_the_largest_cloud_is_taken(tmp_path: Path) -> None:
    clouds = {
        "flat_a_2048.npy": cloud(0, 700),
        "flat_a_8192.npy": cloud(1, 900),
        "bare_a.npy": cloud(2, 900),  # without a number, the larger one
        "bare_a_700.npy": cloud(3, 700),
        "folder_a/folder_a_2048.npz": cloud(4, 700),
        "folder_a/folder_a_8192.npz": cloud(5, 900),
        "both_a_700.npy": cloud(6, 700),  # flat and in a folder
        "both_a/both_a_900.npz": cloud(7, 900),
    }
    uids = ["flat_a", "bare_a", "folder_a", "both_a"]
    raw = raw_folder(tmp_path / "raw", clouds, "".join(f"{uid},a cube\n" for uid in uids))
    (raw / "train.txt").write_text("\n".join(uids))
    convert(objaverse, raw, tmp_path / "out", "train")
    assert {uid: len(points) for uid, points in stored(tmp_path / "out").items()} == dict.fromkeys(uids, 900)


def test_a_uid_that_ends_in_a_number_is_found(tmp_path: Path) -> None:
    names = ("chair_0001.npy", "chair_0002_8192.npy", "table_12.npy", "table.npy", "chair_0003/chair_0003.npz")
    raw = raw_folder(tmp_path / "raw", {name: cloud(k, 600 + k) for k, name in enumerate(names)})
    folder = CloudFolder(raw / "8192_npy", {"table", "table_12"})
    assert [folder.find(uid).name for uid in ("chair_0001", "chair_0002", "table_12", "table", "chair_0003")] == [
        "chair_0001.npy",
        "chair_0002_8192.npy",
        "table_12.npy",
        "table.npy",
        "chair_0003.npz",
    ]
    with pytest.raises(RejectedError, match=r"points_missing: no .*chair_8192"):
        folder.find("chair")
    assert CloudFolder(raw / "8192_npy", {"table"}).find("table").name == "table.npy", "600 + 3 points, not 602"


@pytest.mark.parametrize("with_table", [True, False])
def test_regionblips_lists_are_read(tmp_path: Path, with_table: bool) -> None:
    """They hold ``uid,caption``: a split and its captions at once. Where Cap3D's table is there too, its captions lead."""
    uids = [f"{k:032x}" for k in range(4)]
    raw = raw_folder(
        tmp_path / "raw",
        {f"{uid}_8192.npy": cloud(k, 600) for k, uid in enumerate(uids)},
        f"{uids[0]},from the table\n" if with_table else None,
    )
    (raw / "Cap3D_automated_Objaverse_train.txt").write_text(
        f'{uids[0]},from the list\n{uids[1]},"a red cube, and a ball"\n{uids[1]},again\nmalformed\n'
    )
    (raw / "Cap3D_automated_Objaverse_test.txt").write_text(f"{uids[2]},a bowl\n")
    convert(objaverse, raw, tmp_path / "train", "train")
    captions = {name: item.record.captions for name, item in found(tmp_path / "train").items()}
    assert captions == {
        f"objaverse/{uids[0]}": ["from the table" if with_table else "from the list"],
        f"objaverse/{uids[1]}": ["a red cube, and a ball"],
    }
    assert reasons(tmp_path / "train") == {"duplicate_source": 1, "malformed_row": 1}
    convert(objaverse, raw, tmp_path / "test", "test")
    assert set(found(tmp_path / "test")) == {f"objaverse/{uids[2]}"}
    with pytest.raises(ValueError, match=r"val\.txt: not found, though there is Cap3D_automated_Objaverse_train\.txt"):
        convert(objaverse, raw, tmp_path / "val", "val")
    (raw / "test.txt").write_text(f"{uids[3]}\n")
    with pytest.raises(ValueError, match=r"test\.txt and .*Objaverse_test\.txt: two lists of one split"):
        objaverse.read_lists(raw, Counter())


def test_the_api_takes_arrays_of_both_ranges(caplog: pytest.LogCaptureFixture) -> None:
    for high in (1.0, 255.0):
        given = coloured(40, high)
        points = api_cloud(given, "points[0]")
        np.testing.assert_allclose(points[:, 3:], given[:, 3:] / high, rtol=1e-6)
        assert ("points[0]: colours from 0 to 255, divided by 255" in caplog.text) == (high > 1)
    with pytest.raises(InputError, match=r"points\[0\]: its colours reach from -1 to 1; .* keep x y z alone"):
        api_cloud(coloured(40, 1.0, -1.0), "points[0]")
