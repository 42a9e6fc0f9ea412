"""What the messages about checkpoints and exports advise helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rb.checkpoints.checkpoint import (
    CHECKPOINTS,
    LATEST,
    META_FILE,
    STATE_FILE,
    TrainState,
    copy_parameters,
    find,
    save,
)
from rb.checkpoints.export_folder import (
    ADAPTER_WEIGHTS,
    EXPORT_FILE,
    MODALITY_FILE,
    PARTS_FILE,
    files_of,
    find_foundation,
    read_export,
)
from rb.core.files import file_sha256
from rb.core.modality import IMAGE_REGION
from tests.support.remedies import Said, covers, helps, remedy, typed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two small checkpoints."""
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        state = TrainState({kind: {"a": torch.ones(2)} for kind in TrainState().tensors})
        save(tmp_path / "run", step, state, {}, keep=2)
    return tmp_path / "run"


def edited(path: Path, change: Callable[[dict], object], digest: bool = True) -> None:
    from rb.checkpoints.checkpoint import _digest

    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree | ({"digest": _digest(tree)} if digest else {})))


# Message -> what happens to the checkpoint that was asked for; the one beside it is used.
ALTERED = {
    "it is not a whole checkpoint, use another one": lambda path: (path / META_FILE).unlink(),
    "altered or cut off, not JSON ({}); use another checkpoint": lambda path: (path / META_FILE).write_text('{"a"'),
    "altered, its digest does not fit; use another": lambda path: edited(
        path / META_FILE, lambda m: m.update(step=9), False
    ),
    "lacks its files or its step; use another": lambda path: edited(path / META_FILE, lambda m: m.pop("step")),
    "{}: missing; use another checkpoint": lambda path: (path / STATE_FILE).unlink(),
    "its sha256 is not the recorded one; use another": lambda path: (path / STATE_FILE).write_bytes(b""),
}


@pytest.mark.parametrize("says", covers(ALTERED))
def test_another_checkpoint_is_used(run: Path, says: str) -> None:
    steps = sorted((run / CHECKPOINTS).glob("step_*"))
    ALTERED[says](steps[1])
    helps(says, lambda: find(steps[-1]), lambda _: steps.pop())


NONE_WHOLE = "Put one back, or remove this folder to start the run at step 0"


@pytest.mark.parametrize("way", ["put", "remove"])
def test_a_run_without_a_whole_checkpoint(run: Path, tmp_path: Path, way: str) -> None:
    shutil.copytree(run, tmp_path / "copy")
    for path in (run / CHECKPOINTS).glob(f"step_*/{STATE_FILE}"):
        path.unlink()

    def follow(said: Said) -> None:
        if way == "put":
            shutil.copytree(tmp_path / "copy" / CHECKPOINTS, run / CHECKPOINTS, dirs_exist_ok=True)
        else:
            shutil.rmtree(said.found(r"^(\S+): no whole"))

    helps(NONE_WHOLE, lambda: find(run), follow)
    assert (find(run) is None) == (way == "remove")


covers([NONE_WHOLE])


@remedy("expected step_NUMBER; write the name of a folder beside it there")
def test_a_pointer_that_names_something_else(run: Path):
    """The newest whole one is used meanwhile, which is said each time."""
    pointer = run / CHECKPOINTS / LATEST
    pointer.write_text("the last one")
    follow = lambda said: Path(said.found(r": (\S+): names")).write_text(sorted(pointer.parent.glob("step_*"))[-1].name)  # noqa: E731
    return lambda: find(run), follow


@remedy("; train the same modalities")
def test_parameters_of_more_modalities():
    model = {"a": torch.nn.Parameter(torch.ones(2))}
    follow = lambda _: model.update(b=torch.nn.Parameter(torch.ones(2)))  # noqa: E731
    return lambda: copy_parameters("run", model, {"a": torch.ones(2), "b": torch.ones(2)}), follow


def alter(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def harm(export: Path) -> None:
        tree = json.loads((export / name).read_text())
        change(tree)
        (export / name).write_text(json.dumps(tree))

    return harm


def more_tensors(name: str, tensor: str) -> Callable[[Path], None]:
    def harm(export: Path) -> None:
        path = export / name
        tensors = load_file(path)
        path.unlink()
        save_file({**tensors, tensor: torch.ones(1)}, path)

    return harm


REGION = f"{IMAGE_REGION}/{MODALITY_FILE}"
EXPORTS = {
    "field 'modalities' {}; export again": alter(EXPORT_FILE, lambda tree: tree.update(modalities="all")),
    "missing, though {} lists it; export again": lambda export: (export / REGION).unlink(),
    "its weights cannot be read ({}); copy or export it again": lambda export: (
        export / IMAGE_REGION / PARTS_FILE
    ).write_bytes(b"cut"),
    "which is no weight of LoRA; export again": more_tensors(f"{IMAGE_REGION}/{ADAPTER_WEIGHTS}", "strange"),
    "which {} does not list; export again": more_tensors(f"{IMAGE_REGION}/{PARTS_FILE}", "strange"),
    "lists no modality; export again": alter(EXPORT_FILE, lambda tree: tree.update(modalities=[])),
    "exported from another run or step than {}; export again": alter(REGION, lambda tree: tree.update(step=3)),
    "is missing or of another type than `rb export` writes; export again": alter(REGION, lambda tree: tree.pop("run")),
    "not written by rb export in format {}; export again with this version": alter(
        REGION, lambda tree: tree.update(format=0)
    ),
}


@pytest.mark.parametrize("says", covers(EXPORTS))
def test_a_damaged_export_is_made_again(finished: Path, tmp_path: Path, says: str) -> None:
    """`rb export` is run for the first, and gives the same files each time; for the others they are copied."""
    export = shutil.copytree(finished / "export", tmp_path / "export")
    EXPORTS[says](export)

    def follow(_: Said) -> None:
        shutil.rmtree(export)
        if says == next(iter(EXPORTS)):
            assert "error" not in typed("export", finished / "run", "--out", export)
        else:
            shutil.copytree(finished / "export", export)

    helps(says, lambda: read_export(export), follow)
    for path in files_of(finished / "export"):
        other = export / path.relative_to(finished / "export")
        assert path.name == "README.md" or file_sha256(path) == file_sha256(other), path


@remedy("is there); make one with rb export RUN_DIR --out DIR")
def test_a_run_folder_where_an_export_is_needed(finished: Path, tmp_path: Path):
    folder = [finished / "run"]

    def follow(said: Said) -> None:
        words = (
            said.found(r"make one with rb (.*)$")
            .replace("RUN_DIR", str(finished / "run"))
            .replace("DIR", str(tmp_path / "new"))
        )
        assert "error" not in typed(*words.split())
        folder[0] = tmp_path / "new"

    return lambda: files_of(folder[0]), follow


@remedy("move it elsewhere (nothing was sent)")
def test_strangers_in_an_export(finished: Path, tmp_path: Path):
    export = shutil.copytree(finished / "export", tmp_path / "export")
    (export / "notes.txt").touch()
    (export / "weights").symlink_to(finished)

    def follow(said: Said) -> None:
        for name in said.found("does not have: (.*); move").replace(" (a link)", "").split(", "):
            shutil.move(export / name, tmp_path)

    return lambda: files_of(export), follow


@remedy("needs a folder {}/ with a Hugging Face BLIP-2, found {}; beside it text_branch/")
def test_a_foundation_folder(finished: Path, foundation, tmp_path: Path):
    follow = lambda said: shutil.copytree(foundation.blip2, tmp_path / said.found(r"needs a folder (\S+)/ with"))  # noqa: E731
    return lambda: find_foundation(tmp_path, f"here/{Path(foundation.blip2).name}"), follow
