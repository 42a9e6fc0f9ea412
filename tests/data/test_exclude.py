"""`rb data exclude`: what another set holds is left out, by id or by look, and listed; the rest keeps its bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.modality import MODALITIES
from rb.data.compare_sets import shared
from rb.data.exclude import exclude
from rb.data.formats import read_rejected
from rb.data.tars import scan_shard
from tests.support.raw_data import cli_run
from tests.support.remedies import Said, remedy, typed
from tests.support.small_data import write_set


def records(folder: Path) -> dict[str, bytes]:
    return {item.record.source_id: item.media for path in sorted(folder.glob("*.tar")) for item in scan_shard(path)}


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_what_a_test_set_holds_is_left_out(modality: str, tmp_path: Path) -> None:
    write_set(tmp_path / "train", modality, 6)
    write_set(tmp_path / "test", modality, 2, "test", first=3)
    manifest, count = exclude(tmp_path / "train", [tmp_path / "test"], tmp_path / "new")
    everything = records(tmp_path / "train")
    left = [name for name in everything if name not in records(tmp_path / "test")]
    assert list(records(tmp_path / "new").items()) == [(name, everything[name]) for name in left]
    assert (count, manifest.name, manifest.split, manifest.counts["records"]) == (2, "small", "train", 4)
    assert manifest.rejected == {"no_caption": 1, "shared_source": 2}
    assert [row.source for row in read_rejected(tmp_path / "new/rejected.jsonl")[1:]] == [
        f"{modality}/{i}.x" for i in (3, 4)
    ]
    assert shared(tmp_path / "test", tmp_path / "new").empty


def test_several_sets_as_json_and_clear_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "train", "image", 6)
    for first in (0, 4):
        write_set(tmp_path / f"test{first}", "image", 1, "test", first=first)
    words = ["data", "exclude", str(tmp_path / "train"), "--out", str(tmp_path / "new"), "--json"]
    for first in (0, 4):
        words += ["--against", str(tmp_path / f"test{first}")]
    assert cli_run(*words) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == 2
    assert cli_run(*words) == 2
    assert "holds a set of shards already; replace it with --overwrite" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no record could be used \(.*shared_source: 6"):
        exclude(tmp_path / "train", [tmp_path / "train"], tmp_path / "none")
    write_set(tmp_path / "clouds", "point_cloud", 2)
    with pytest.raises(ValueError, match="give two sets of one modality"):
        exclude(tmp_path / "train", [tmp_path / "clouds"], tmp_path / "no")
    assert not (tmp_path / "no").exists()


@remedy("without them: `rb data exclude {} --against {} --out NEW`")
def test_verify_says_how_to_leave_them_out(tmp_path: Path):
    write_set(tmp_path / "train", "image", 4)
    write_set(tmp_path / "test", "image", 2, "test", first=2)
    words = ["data", "verify", tmp_path / "train", "--against", tmp_path / "test"]

    def follow(said: Said) -> None:
        (command,) = said.commands
        assert cli_run(*command.replace("NEW", str(tmp_path / "new")).split()[1:]) == 0
        words[2] = tmp_path / "new"

    return lambda: typed(*words), follow
