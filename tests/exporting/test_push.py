"""What `rb push` sends: the files that an export is made of, and nothing that lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.checkpoints.export_folder import ExportError, files_of
from rb.cli import main as rb

FILES = (
    "README.md",
    "export.json",
    "image_region/README.md",
    "image_region/adapter_config.json",
    "image_region/adapter_model.safetensors",
    "image_region/merged/config.json",
    "image_region/merged/generation_config.json",
    "image_region/merged/model-00001-of-00002.safetensors",
    "image_region/merged/model-00002-of-00002.safetensors",
    "image_region/merged/model.safetensors.index.json",
    "image_region/merged/preprocessor_config.json",
    "image_region/merged/tokenizer.json",
    "image_region/merged/tokenizer_config.json",
    "image_region/modality.json",
    "image_region/parts.safetensors",
    "image_region/preprocessor_config.json",
    "point_bert/config.json",
    "point_bert/point_bert.safetensors",
)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """The files of an export with ``--merge``, without what is in them: pushing reads ``export.json`` alone."""
    folder = tmp_path / "out"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "export.json").write_text(json.dumps({"format": 1, "modalities": ["image_region"]}))
    return folder


def test_all_files_of_an_export_go_and_hidden_ones_stay(export: Path) -> None:
    (export / ".cache").mkdir()
    (export / ".cache" / "token").write_text("secret")
    (export / ".env").write_text("secret")
    assert [path.relative_to(export).as_posix() for path in files_of(export)] == sorted(FILES)
    one = export / "image_region"
    names = [name.removeprefix("image_region/") for name in FILES if name.startswith("image_region/")]
    assert [path.relative_to(one).as_posix() for path in files_of(one)] == sorted(names)


@pytest.mark.parametrize(
    "stranger",
    [
        "token.txt",
        "id_rsa",
        "image_region/notes.json",
        "image_region/merged/modeling_evil.py",
        "image_region/merged/pytorch_model.bin",
        "point_bert/secret.safetensors",
        "checkpoints/step_1/state.safetensors",
        "image_region/merged/merged/config.json",
    ],
)
def test_a_stranger_is_refused_with_the_list(export: Path, stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    (export / stranger).parent.mkdir(parents=True, exist_ok=True)
    (export / stranger).write_text("secret")
    assert rb(["push", str(export), "--repo", "me/adapters", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert f"holds what an export does not have: {stranger}; move it elsewhere (nothing was sent)" in line
    # The remedy works.
    (export / stranger).rename(export.parent / "elsewhere")
    assert rb(["push", str(export), "--repo", "me/adapters", "--dry-run"]) == 0


@pytest.mark.parametrize("name", ["id_rsa", "README.md", "image_region/parts.safetensors", "image_region/merged"])
def test_a_link_is_refused_under_any_name(export: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("secret")
    place = export / name
    if place.is_dir():
        place.rename(tmp_path / "was")
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    with pytest.raises(ExportError, match=rf"holds what an export does not have: {name} \(a link\)"):
        files_of(export)


def test_an_export_cannot_list_a_folder_that_is_no_modality(export: Path) -> None:
    (export / "private").mkdir()
    (export / "private" / "modality.json").write_text("{}")
    (export / "export.json").write_text(json.dumps({"format": 1, "modalities": ["image_region", "private"]}))
    with pytest.raises(ExportError, match=r"export does not have: private/modality\.json"):
        files_of(export)
