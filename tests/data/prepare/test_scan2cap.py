"""Boxes that a detector proposes: which object each is taken for, and the set that ``rb prepare scan2cap`` makes of them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rb.cli import main as rb
from rb.data.formats import FormatError, ObjectAnnotation, Record, parse_record
from rb.data.index import ManifestReader
from rb.data.prepare import scan2cap
from rb.data.prepare.proposals import matched, overlaps, read_proposals
from tests.support import scannet_raw
from tests.support.raw_data import convert, found, rejected_rows
from tests.support.scannet_raw import Scan, make_scan

ID = "scene0000_00"


def corners(box: list[float]) -> list[list[float]]:
    """As detectors write a box; in no order that anyone should rely on."""
    return [[box[i], box[j], box[k]] for i, j, k in itertools.product((0, 3), (4, 1), (2, 5))]


def moved(box: list[float], share: float) -> list[float]:
    """``box`` shifted along x by a share of its length."""
    step = share * (box[3] - box[0])
    return [box[0] + step, *box[1:3], box[3] + step, *box[4:]]


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan()


@pytest.fixture
def raw(tmp_path: Path, scan: Scan) -> Path:
    """Descriptions of two chairs, the table and the lamp; proposals as Scan2Cap's benchmark has them."""
    raw, boxes = tmp_path / "raw", scan.boxes()
    scannet_raw.write_scannet(raw, scan)
    said = [
        {"scene_id": ID, "object_id": k, "ann_id": str(n), "description": f"thing {k}, said {n}"}
        for k in ("1", "2", "4", "5")
        for n in range(2)
    ]
    (raw / "ScanRefer_filtered_val.json").write_text(json.dumps(said))
    proposed = [
        corners(moved(boxes["1"], 0.1)),  # IoU 0.9 / 1.1
        corners(moved(boxes["1"], 0.4)),  # the same chair, worse
        corners(moved(boxes["2"], 0.5)),  # IoU 1 / 3
        corners(moved(boxes["4"], 0.7)),  # IoU 0.3 / 1.7: below 0.25
        corners(boxes["6"]),  # an object that nobody described
    ]
    rows = [{"caption": "sos a thing eos", "box": box, "sem_prob": [1.0], "obj_prob": [0.1, 0.9]} for box in proposed]
    rows.append({"caption": "", "box": [[0.0, 0.0, 0.0]] * 8, "obj_prob": [0.1, 0.9]})
    (raw / "pred.json").write_text(json.dumps({ID: rows, "scene0011_00": []}))
    return raw


@pytest.mark.parametrize("match", ["one_to_one", "nearest"])
def test_objects_get_their_proposal_with_its_overlap(raw: Path, tmp_path: Path, scan: Scan, match: str, capsys) -> None:
    out, boxes = tmp_path / "out", scan.boxes()
    arguments = ["prepare", "scan2cap", "--raw", str(raw), "--proposals", str(raw / "pred.json"), "--split", "val"]
    assert rb([*arguments, "--out", str(out), "--match", match, "--json", "--workers", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["read"], printed["used"], printed["captions"]) == (4, 2, 4)
    assert printed["rejected"] == {"no_proposal": 2}
    assert printed["notes"]["objects found at IoU 0.5"] == 1
    assert printed["notes"]["proposals"] == 5
    (item,) = found(out).values()
    chair, other = item.record.objects
    assert (chair.object_id, other.object_id) == ("1", "2")
    assert chair.captions == ["thing 1, said 0", "thing 1, said 1"]
    np.testing.assert_allclose(chair.box, moved(boxes["1"], 0.1), atol=1e-5)
    assert chair.iou == pytest.approx(0.9 / 1.1, abs=1e-4)
    assert other.iou == pytest.approx(1 / 3, abs=1e-4)
    details = {row.object_id: row.detail for row in rejected_rows(out)}
    assert "the best of 5 proposals has IoU 0.176, below 0.25" in details["4"]
    assert details["5"].endswith("IoU 0.000, below 0.25")
    assert "proposal 5: box [0.0, 0.0, 0.0, 0.0, 0.0, 0.0] has no volume" in details[None]
    assert rb(["data", "verify", str(out)]) == 0
    sample = ManifestReader(out).sample(0)  # what prediction reads: the proposal, and the object's descriptions
    assert sample.item is not None
    assert (sample.item.box, sample.item.captions) == (chair.box, chair.captions)


def test_a_stricter_threshold_and_an_empty_result(raw: Path, tmp_path: Path) -> None:
    tally = convert(scan2cap, raw, tmp_path / "half", "val", proposals=raw / "pred.json", min_iou=0.5)
    assert (tally.used, tally.rejected) == (1, Counter(no_proposal=3))
    (raw / "pred.json").write_text(json.dumps({f"scannet/{ID}": []}))
    with pytest.raises(ValueError, match=r"no_proposal: 4\)"):
        convert(scan2cap, raw, tmp_path / "none", "val", proposals=raw / "pred.json")


def test_matching_one_to_one_and_nearest() -> None:
    """Two objects side by side, both proposals nearer to the first; and a neighbour that nobody described."""
    boxes = {"a": [0, 0, 0, 2, 1, 1], "b": [2, 0, 0, 4, 1, 1], "wall": [9, 0, 0, 10, 1, 1]}
    proposals = np.array([[0.0, 0, 0, 2, 1, 1], [0.9, 0, 0, 2.9, 1, 1]])
    one = matched(proposals, boxes, ["a", "b"], "one_to_one")
    assert {name: (p, round(iou, 4)) for name, (p, iou) in one.items()} == {
        "a": (0, 1.0),
        "b": (1, round(0.9 / 3.1, 4)),
    }
    assert matched(proposals, boxes, ["a", "b"], "nearest") == {"a": (0, 1.0)}
    # "one_to_one" sees the described objects alone, "nearest" also the others, which take proposals away.
    tight = np.array([[8.5, 0, 0, 10, 1, 1]])
    near = boxes | {"c": [7.5, 0, 0, 9, 1, 1]}
    assert matched(tight, near, ["c"], "one_to_one")["c"][1] == pytest.approx(0.2)
    assert matched(tight, near, ["c"], "nearest") == {}
    assert matched(np.empty((0, 6)), boxes, ["a"], "nearest") == matched(proposals, boxes, [], "one_to_one") == {}


def test_overlaps_against_counted_cells() -> None:
    """Boxes of whole numbers: cells of a grid, counted."""
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 5, (2, 20, 3)), rng.integers(1, 5, (2, 20, 3))
    boxes = np.concatenate([low, low + high], axis=2)
    cells = np.stack(np.meshgrid(*[np.arange(10) + 0.5] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = ((cells > boxes[:, :, None, :3]) & (cells < boxes[:, :, None, 3:])).all(-1)
    iou, generalised = overlaps(*boxes.astype(np.float64))
    for i, j in itertools.product(range(20), range(20)):
        a, b = inside[0, i], inside[1, j]
        union = (a | b).sum()
        hull = np.prod(np.maximum(boxes[0, i, 3:], boxes[1, j, 3:]) - np.minimum(boxes[0, i, :3], boxes[1, j, :3]))
        assert iou[i, j] == pytest.approx((a & b).sum() / union)
        assert generalised[i, j] == pytest.approx((a & b).sum() / union - (hull - union) / hull)


def test_forms_of_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({ID: [[0, 0, 0, 1, 2, 3], {"bbox": [1, 1, 1, 4, 4, 4]}, {"box": None}, "x", [1, 2]]}))
    found = read_proposals(path, "minmax", [ID], Counter())[ID]
    assert found.boxes.tolist() == [[0, 0, 0, 1, 2, 3], [1, 1, 1, 4, 4, 4]]
    assert [*found.wrong] == [2, 3, 4]
    assert found.wrong[3] == "must be eight corners [8, 3] or six numbers, got 'x'"
    path.write_text(json.dumps({ID: [[5, 5, 5, 1, 2, 3]]}))
    assert "--box-form centre_size" in read_proposals(path, "minmax", [ID], Counter())[ID].wrong[0]
    assert read_proposals(path, "centre_size", [ID], Counter())[ID].boxes.tolist() == [[4.5, 4.0, 3.5, 5.5, 6.0, 6.5]]


def test_attributes_of_mask3d(raw: Path, tmp_path: Path, scan: Scan) -> None:
    path = raw / "scannet_mask3d_val_attributes.pt"
    boxes = np.array([*scan.boxes().values()])
    rows = torch.from_numpy(np.concatenate([(boxes[:, :3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, :3]], axis=1))
    torch.save({ID: {"objects": ["chair"] * len(rows), "locs": rows}, "scene0011_00": {"locs": rows[:1]}}, path)
    assert convert(scan2cap, raw, tmp_path / "out", "val", proposals=path).used == 4
    (item,) = found(tmp_path / "out").values()
    assert [one.iou for one in item.record.objects] == pytest.approx([1.0] * 4, abs=1e-5)
    for content, says in (([rows], "holds none"), ({ID: rows}, r"'scene0000_00' must have locs, a tensor \[P, 6\]")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=says):
            convert(scan2cap, raw, tmp_path / "no", "val", proposals=path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"attributes\.pt: not a file of tensors"):
        convert(scan2cap, raw, tmp_path / "no", "val", proposals=path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", r"pred\.json: must be an object of scene ids"),
        ('{"scene0000_00": {"box": 1}}', "each with a list of boxes"),
        ("\x80\x04", "pred.json: not valid JSON"),
        (
            '{"scene0011_00": []}',
            r"pred\.json: holds none of the 1 scenes, such as scene0000_00; give the proposals of this",
        ),
    ],
)
def test_files_of_another_kind_are_named(raw: Path, tmp_path: Path, content: str, says: str) -> None:
    (raw / "pred.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        convert(scan2cap, raw, tmp_path / "out", "val", proposals=raw / "pred.json")


def test_the_overlap_is_a_field_only_where_there_is_one() -> None:
    plain, proposed = (ObjectAnnotation("1", [0.0] * 3 + [1.0] * 3, ["a"], iou) for iou in (None, 0.5))
    record = Record("s/1", "x", "val", 0, 0, [], [plain, proposed])
    tree = json.loads(record.to_json())
    assert ["iou" in item for item in tree["objects"]] == [False, True]
    assert parse_record(record.to_json(), "x") == record
    tree["objects"][0]["iou"] = 1.5
    with pytest.raises(FormatError, match=r"objects\[0\]: field 'iou' must be a number from 0 to 1, got 1\.5"):
        parse_record(json.dumps(tree).encode(), "x")
