"""Objaverse as its publishers ship it: Cap3D's clouds and zips, PointLLM's captions and evaluation objects, Cap3D's fixed splits."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from rb.data.prepare import objaverse, object_splits, pointllm
from rb.data.prepare.cloud_folder import POINTLLM_DAMAGED, CloudFolder
from rb.data.prepare.common import RejectedError
from rb.data.prepare.object_splits import read_lists
from rb.sources.points import decode_points
from tests.support.raw_data import cli_run, convert, found, reasons
from tests.support.remedies import Said, remedy

POINTS = 600


def uid(k: int) -> str:
    return f"{k:032x}"


def cloud(seed: int) -> np.ndarray:
    """[POINTS, 6]: coordinates in Shap-E's frame, colours 0 to 255 as Cap3D has them."""
    draw = np.random.default_rng(seed)
    xyz = draw.uniform(-0.5, 0.5, (POINTS, 3)).astype(np.float32)
    return np.concatenate([xyz, draw.integers(0, 256, (POINTS, 3))], axis=1).astype(np.float32)


def ply(array: np.ndarray, text: bool = True) -> bytes:
    """As Cap3D's: properties x, y, z (float), red, green, blue (uchar)."""
    rows = np.zeros(len(array), [(n, "f4") for n in ("x", "y", "z")] + [(n, "u1") for n in ("red", "green", "blue")])
    for column, name in enumerate(rows.dtype.names):
        rows[name] = array[:, column]
    stream = io.BytesIO()
    PlyData([PlyElement.describe(rows, "vertex")], text=text).write(stream)
    return stream.getvalue()


def pt(array: np.ndarray) -> bytes:
    """As Cap3D's: one tensor, channels first."""
    stream = io.BytesIO()
    torch.save(torch.from_numpy(array.T.copy()), stream)
    return stream.getvalue()


def table(raw: Path, uids: list[str]) -> Path:
    raw.mkdir(exist_ok=True)
    (raw / "Cap3D_automated_Objaverse.csv").write_text("".join(f"{u},cloud {u}\n" for u in uids))
    return raw


def stored(out: Path) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: decode_points(item.media, name) for name, item in found(out).items()}


def check(out: Path, numbers: list[int]) -> None:
    points = stored(out)
    assert list(points) == [uid(k) for k in numbers]
    for k in numbers:
        np.testing.assert_allclose(points[uid(k)][:, :3], cloud(k)[:, :3], rtol=1e-6)
        np.testing.assert_allclose(points[uid(k)][:, 3:], cloud(k)[:, 3:] / 255, atol=1e-6)


@pytest.mark.parametrize("zipped", [False, True])
def test_cap3ds_clouds_in_folders_and_in_zips(tmp_path, zipped):
    """Text and binary ply, tensors [6, N] and [N, 6]: the same points, in [0, 1] colours; 16,384 points are not needed."""
    files = {f"{uid(1)}.ply": ply(cloud(1)), f"{uid(2)}.ply": ply(cloud(2), text=False), f"{uid(3)}.pt": pt(cloud(3))}
    files |= {f"{uid(4)}.pt": pt(cloud(4).T), f"{uid(5)}.pt": b"", f"{uid(7)}.pt": pt(cloud(7))[:-900]}
    raw = table(tmp_path / "raw", [uid(k) for k in range(1, 8)])
    (raw / "train.txt").write_text("\n".join(uid(k) for k in range(1, 8)))
    if zipped:
        (raw / "PointCloud_zips").mkdir()
        for number, chosen in enumerate((".ply", ".pt")):
            with zipfile.ZipFile(
                raw / f"PointCloud_zips/compressed_pcs_{number:02d}.zip", "w", zipfile.ZIP_DEFLATED
            ) as archive:
                for name, data in files.items():
                    if name.endswith(chosen):
                        archive.writestr(f"Cap3D_pcs/{name}", data)
    else:
        (raw / "Cap3D_pcs_pt").mkdir()
        for name, data in files.items():
            (raw / "Cap3D_pcs_pt" / name).write_bytes(data)
    tally = convert(objaverse, raw, tmp_path / "out", "train", workers=4)
    check(tmp_path / "out", [1, 2, 3, 4])
    assert tally.captions == 4
    assert reasons(tmp_path / "out") == {"points_unreadable": 2, "points_missing": 1}
    rejected = (tmp_path / "out/rejected.jsonl").read_text()
    assert f"{uid(5)}.pt: is empty; download it again" in rejected
    assert ("compressed_pcs_01.zip: Cap3D_pcs/" in rejected) is zipped
    assert (f"{uid(6)}_8192.npy (or .npz, .npy, .ply, .pt), with or without the number" in rejected) is True
    assert (", nor in 2 zips" in rejected) is zipped


def test_a_zip_by_name_and_a_damaged_one(tmp_path):
    raw = table(tmp_path / "raw", [uid(1), uid(2)])
    with zipfile.ZipFile(raw / "compressed_pcs_00.zip", "w") as archive:
        archive.writestr(f"{uid(1)}.ply", ply(cloud(1)))
    (raw / "train.txt").write_text(f"{uid(1)}\n")
    assert cli_run("prepare", "objaverse", "--raw", str(raw), "--out", str(tmp_path / "a"), "--workers", "1") == 0
    convert(objaverse, raw, tmp_path / "b", "train", points=raw / "compressed_pcs_00.zip")
    for out in ("a", "b"):
        check(tmp_path / out, [1])
    (raw / "compressed_pcs_00.zip").write_bytes(b"PK\3\4" + bytes(90))
    with pytest.raises(ValueError, match=r"compressed_pcs_00\.zip: not a zip that can be read .*; download it again"):
        convert(objaverse, raw, tmp_path / "c", "train")


def conversation(
    k: int, answer: object = None, kind: str | None = pointllm.BRIEF, question: str = "<point>\nWhat is this?"
) -> dict:
    item: dict = {"object_id": uid(k), "conversation_type": kind} if kind else {"object_id": uid(k)}
    answer = f"A brief description of {k}." if answer is None else answer
    return item | {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def pointllm_raw(raw: Path, items: list, name: str = "PointLLM_brief_description_660K.json") -> Path:
    (raw / "anno_data").mkdir(parents=True, exist_ok=True)
    (raw / "8192_npy").mkdir(exist_ok=True)
    (raw / "anno_data" / name).write_text(json.dumps(items, indent=2))
    for k in range(1, 9):
        shares = cloud(k) / np.array([1, 1, 1, 255, 255, 255], np.float32)
        np.save(raw / f"8192_npy/{uid(k)}_8192.npy", shares)
    return raw


def test_pointllms_captions_and_its_evaluation_objects(tmp_path):
    """Brief descriptions only; the 3,000 ids are the test split, the others train."""
    long = {
        "object_id": uid(1),
        "conversation_type": "multi_round",
        "conversations": [{"from": "human", "value": "<point>"}] * 6,
    }
    items = [conversation(k) for k in range(1, 7)] + [
        long,
        conversation(2, "detailed", "detailed_description"),
        conversation(1, "again"),
    ]
    raw = pointllm_raw(tmp_path / "raw", items)
    (raw / "anno_data/val_object_ids_3000.txt").write_text(f"{uid(4)}\n{uid(2)}\n")
    train = convert(objaverse, raw, tmp_path / "train", "train")
    check(tmp_path / "train", [1, 3, 5, 6])
    assert train.notes[pointllm.OTHER_KINDS] == 2
    assert reasons(tmp_path / "train") == {"duplicate_source": 1}
    convert(objaverse, raw, tmp_path / "test", "test")
    check(tmp_path / "test", [4, 2])
    assert found(tmp_path / "test")[f"objaverse/{uid(2)}"].record.captions == ["A brief description of 2."]


def test_pointllms_filtered_captions_with_the_truth_of_the_others(tmp_path):
    """Their file for training lacks the evaluation objects; those come from the truth's file, which names no kind."""
    raw = pointllm_raw(
        tmp_path / "raw", [conversation(k) for k in (1, 3)], "PointLLM_brief_description_660K_filtered.json"
    )
    truth = [conversation(k, f"The truth of {k}.", None) for k in (2, 4)]
    for size in (200, 3000):
        (raw / f"anno_data/PointLLM_brief_description_val_{size}_GT.json").write_text(
            json.dumps(truth[: 1 if size == 200 else 2])
        )
    assert (
        cli_run(
            "prepare",
            "objaverse",
            "--raw",
            str(raw),
            "--out",
            str(tmp_path / "out"),
            "--split",
            "all",
            "--workers",
            "1",
        )
        == 0
    )
    check(tmp_path / "out/train", [1, 3])
    check(tmp_path / "out/test", [2, 4])
    assert found(tmp_path / "out/test")[f"objaverse/{uid(4)}"].record.captions == ["The truth of 4."]


def test_conversations_that_are_no_descriptions_are_listed(tmp_path):
    items = [
        conversation(1),
        conversation(2, question="What is this?"),
        conversation(3, answer=5),
        {"object_id": 4},
        "text",
        {"object_id": uid(5), "conversations": [None, {"from": "gpt"}]},
        {"object_id": uid(6), "conversations": conversation(6)["conversations"][::-1]},
        conversation(7, answer=" \n"),
    ]
    raw = pointllm_raw(tmp_path / "raw", items)
    (raw / "train.txt").write_text(f"{uid(1)}\n{uid(7)}\n")
    convert(objaverse, raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {"malformed_row": 6, "no_caption": 1}
    rejected = (tmp_path / "out/rejected.jsonl").read_text()
    assert "660K.json, item 2: the human turn must have <point>" in rejected
    assert "660K.json, item 4: no text 'object_id'" in rejected
    (raw / "anno_data/PointLLM_brief_description_660K.json").write_text(json.dumps(items)[:-9])
    with pytest.raises(ValueError, match=r"660K\.json: item 8 of the list: .*; download it again"):
        objaverse.open_raw(raw)


def test_pointllms_damaged_clouds_are_left_out_in_its_own_files_only(tmp_path):
    bad = sorted(POINTLLM_DAMAGED)[0]
    np.save(tmp_path / f"{bad}_8192.npy", cloud(1))
    with pytest.raises(
        RejectedError, match=r"points_unreadable: .*one of two clouds that PointLLM leaves out as damaged"
    ):
        CloudFolder(tmp_path, {bad}).read(bad, 1)
    (tmp_path / f"{bad}_8192.npy").rename(tmp_path / f"{bad}.npy")
    assert CloudFolder(tmp_path, {bad}).read(bad, 1).shape == (POINTS, 6)


def test_cap3ds_fixed_splits_are_read(tmp_path):
    uids = [uid(k) for k in range(6)]
    lists = {"training_set.pkl": uids[:3], "validation_set.pkl": set(uids[3:5]), "test_uids_2k.pkl": tuple(uids[5:])}
    for name, value in lists.items():
        (tmp_path / name).write_bytes(pickle.dumps(value))
    found_lists = read_lists(tmp_path, Counter())
    assert {split: one.uids for split, one in found_lists.items()} == {
        "train": uids[:3],
        "val": uids[3:5],
        "test": uids[5:],
    }
    (tmp_path / "test.txt").write_text(uids[5])
    with pytest.raises(ValueError, match=r"test\.txt and .*test_uids_2k\.pkl: two lists of one split; remove one"):
        read_lists(tmp_path, Counter())
    (tmp_path / "test.txt").unlink()
    (tmp_path / "test_uids_2k.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"test_uids_2k\.pkl: must be a pickled list of uids"):
        read_lists(tmp_path, Counter())


def test_the_draw_is_said_and_does_not_ask_for_points(tmp_path, capsys):
    uids = [uid(k) for k in range(40)]
    raw = table(tmp_path / "raw", uids)
    (raw / "8192_npy").mkdir()
    drawn = object_splits.choose_uids(raw, "test", uids, {})
    assert len(drawn) == 1
    for k in range(0, 40, 2):  # every second cloud is missing
        np.save(raw / f"8192_npy/{uid(k)}.npy", cloud(k))
    arguments = [
        "prepare",
        "objaverse",
        "--raw",
        str(raw),
        "--split",
        "all",
        "--workers",
        "1",
        "--val",
        "3",
        "--dry-run",
        "--json",
    ]
    assert cli_run(*arguments, "--out", str(tmp_path / "out")) == 0
    captured = capsys.readouterr()
    assert (
        "1 of 40 objects (3 %, as there are fewer than 40,000) are drawn for testing and 3 for validation"
        in captured.err
    )
    answers = {answer["title"].split()[-1]: answer["read"] for answer in json.loads(captured.out)}
    assert answers == {"train": 36, "val": 3, "test": 1}
    (raw / "train.txt").write_text(uids[0])
    with pytest.raises(ValueError, match=r"--val 3: objects are drawn, from 0 up, only where .* has no lists of uids"):
        objaverse.open_raw(raw, val=3)


@remedy("--val {}: there are {} objects, {} of them for testing; choose fewer")
def test_more_objects_for_validation_than_there_are(tmp_path):
    raw = table(tmp_path / "raw", [uid(k) for k in range(40)])
    (raw / "8192_npy").mkdir()
    numbers = [40]
    return lambda: objaverse.open_raw(raw, val=numbers[-1]).plan("val"), lambda _: numbers.append(39)


@remedy("and no objects are drawn for validation; say --val N to draw some")
def test_no_objects_for_validation(tmp_path):
    raw = table(tmp_path / "raw", [uid(k) for k in range(40)])
    (raw / "8192_npy").mkdir()
    options: dict[str, int] = {}
    follow = lambda said: options.update({said.found(r"say --(\w+) N"): 5})  # noqa: E731
    return lambda: objaverse.open_raw(raw, **options).plan("val"), follow


@remedy("must be a pickled list of uids; download it again")
def test_another_pickle_in_the_place_of_a_list(tmp_path):
    file = table(tmp_path / "raw", [uid(1)]) / "training_set.pkl"
    file.write_bytes(pickle.dumps({"a": 1}))
    return lambda: read_lists(file.parent, Counter()), lambda _: file.write_bytes(pickle.dumps([uid(1)]))


@remedy("refused, {}. Only plain lists, dicts, numbers and texts are read from pickles", also=["`python -c {}`"])
def test_a_list_of_uids_that_asks_for_a_class(tmp_path):
    """As Python 2's protocol writes a set."""
    file = table(tmp_path / "raw", [uid(1), uid(2)]) / "test_uids_2k.pkl"
    file.write_bytes(pickle.dumps({uid(1)}, protocol=2))

    def lists():
        assert read_lists(file.parent, Counter())["test"].uids == [uid(1)]

    return lists, Said.ran


@remedy("{}: is empty; download it again")
def test_an_empty_cloud(tmp_path):
    """One of Cap3D's tensors was published so."""
    file = tmp_path / f"{uid(1)}.pt"
    file.write_bytes(b"")
    clouds = CloudFolder(tmp_path, {uid(1)})
    return lambda: clouds.read(uid(1), 1), lambda _: file.write_bytes(pt(cloud(1)))
