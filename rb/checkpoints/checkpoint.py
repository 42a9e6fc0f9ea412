"""The project's own training checkpoint: written whole or not at all, verified when read, the same for any number of ranks.

`RUN_DIR/checkpoints/step_0001200/` holds `state.safetensors` (parameters, both AdamW moments, update counts, by parameter name,
float32) and `checkpoint.json` (step, configuration, identity of foundation and data, versions, sha256 of the state and of
itself). A folder of that name is always complete: it is written under another name, flushed to disk and renamed; only then does the
file `checkpoints/latest` name it, and `checkpoints/best`, where validation found it the best so far. No pickle. Only rank 0 writes;
the engine gathers and scatters.

What a disk or a person does to them afterwards is found when they are read. Whoever asks for a run's newest checkpoint gets the newest whole
one, with a warning where that is not the one that `latest` names; who asks for a certain one gets that or an error.

Who uses it: the loop (save, resume) and `rb/inference/load.py`, the way of everyone else.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rb.core import heartbeat
from rb.core.files import cannot_write, check_room, file_sha256, sha256, temporary_name, whole_folder, write_whole
from rb.core.run_layout import BEST, CHECKPOINTS, LATEST, STEP_PREFIX, step_name
from rb.core.strict_json import count, parse_foreign, read_bytes
from rb.core.tensor_files import read_tensor_file

FORMAT = 1
STATE_FILE = "state.safetensors"
META_FILE = "checkpoint.json"
PARAMETER, EXP_AVG, EXP_AVG_SQ, UPDATES = "parameter", "exp_avg", "exp_avg_sq", "updates"
KINDS = (PARAMETER, EXP_AVG, EXP_AVG_SQ, UPDATES)

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered, or does not fit."""


@dataclass
class TrainState:
    """Everything that training changes, whole (not ZeRO's pieces), by parameter name, on the CPU.

    Attributes:
        tensors: kind ("parameter", "exp_avg", "exp_avg_sq": float32 in the parameter's shape; "updates": int64 [1], how many updates
            the parameter had) -> parameter name -> tensor.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    @property
    def names(self) -> set[str]:
        """Names of the parameters."""
        return set(self.tensors[PARAMETER])

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for named in self.tensors.values() for tensor in named.values())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose files were verified."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps made when it was written."""
        return int(self.meta["step"])


def save(run_dir: Path, step: int, state: TrainState, meta: Mapping[str, Any], keep: int, best: bool = False) -> Path:
    """Write the checkpoint of a step, let `latest` name it, and delete older ones, but not the one `best` names. Rank 0 only.

    Args:
        run_dir: the run folder; it is there.
        step: optimizer steps made so far.
        state: what the engine gathered.
        meta: what else is to be known of it (configuration, identities, versions): plain JSON values.
        keep: how many checkpoints stay, this one included.
        best: let `best` name it too.

    Raises:
        CannotWriteError: it cannot be written (disk full, no permission), with path and bytes; what was there before is intact.
    """
    folder = run_dir / CHECKPOINTS
    target, needed = folder / step_name(step), state.num_bytes
    try:
        folder.mkdir(exist_ok=True)
        _remove_left_overs(folder)
        check_room(folder, needed)
        # One of that step may be there, of an attempt that ended before `latest` named it, so nothing refers to it.
        with whole_folder(target, replace=True) as temporary:
            _write(temporary, step, state, meta)
            heartbeat.written()
        heartbeat.written()
        _point(folder, LATEST, target.name)
        if best:
            _point(folder, BEST, target.name)
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error, needed) from error
    _delete_older(folder, step, keep)
    return target


def amend(run_dir: Path, step: int, changes: Mapping[str, Any], keep: int, best: bool = False) -> None:
    """Change what the checkpoint of a step records beside its state (``changes`` of ``save``'s ``meta``); whole at every moment. Rank 0 only.

    ``CheckpointError`` where it is missing, incomplete or altered, ``CannotWriteError`` where the disk refuses.
    """
    folder = run_dir / CHECKPOINTS
    found = verify(folder / step_name(step))
    content = found.meta | dict(changes)
    content["digest"] = _digest(content)
    try:
        write_whole(found.path / META_FILE, _as_text(content))
        if best:
            _point(folder, BEST, found.path.name)
    except OSError as error:
        raise cannot_write(found.path / META_FILE, error) from error
    _delete_older(folder, step, keep)


def set_aside_torn(run_dir: Path, step: int) -> None:
    """Give torn checkpoints later than a step a hidden name; the next `save` removes them. Rank 0 only.

    For a resume from that step, so that a torn one never counts among those that `save` keeps.
    """
    for path in step_folders(run_dir / CHECKPOINTS):
        if step_of(path) > step:
            try:
                verify(path)
            except CheckpointError:
                path.rename(temporary_name(path))


def set_best(run_dir: Path, step: int | None) -> bool:
    """Let `best` name the checkpoint of a step, or none; false (and none) where that checkpoint is gone. Rank 0 only.

    For a resume: a killed run may have named a checkpoint later than the one it continues from.
    """
    folder = run_dir / CHECKPOINTS
    name = "" if step is None else step_name(step)
    if name and (folder / name).is_dir():
        _point(folder, BEST, name)
        return True
    (folder / BEST).unlink(missing_ok=True)
    return False


def _delete_older(folder: Path, step: int, keep: int) -> None:
    """Of the checkpoints before a step all but the newest ``keep - 1`` go, and not the one that `best` names."""
    kept = pointed(folder / BEST) if (folder / BEST).is_file() else ""
    older = [path for path in step_folders(folder) if step_of(path) < step and path.name != kept]
    try:
        for old in older[keep - 1 :]:
            _remove(old)
            heartbeat.written()
    except OSError as error:  # the new one is there; the next save tries again
        log.warning("%s: an older checkpoint cannot be deleted (%s)", folder, error)


def _point(folder: Path, file: str, name: str) -> None:
    """Let a pointer file name a checkpoint; on the disk when this returns."""
    write_whole(folder / file, name + "\n")


def step_folders(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, the newest first."""
    named = (path for path in folder.glob(f"{STEP_PREFIX}*") if path.name.removeprefix(STEP_PREFIX).isdecimal())
    return sorted(named, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(path.name.removeprefix(STEP_PREFIX))


def _remove(path: Path) -> None:
    """Take the name away first: a folder that has it is whole, also if this is killed halfway."""
    hidden = temporary_name(path)
    path.rename(hidden)
    shutil.rmtree(hidden)


def _remove_left_overs(folder: Path) -> None:
    """What killed writers left. Only one process writes here: the one that holds the run folder's lock."""
    for left_over in left_overs(folder):
        if left_over.is_dir():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()


def left_overs(folder: Path) -> list[Path]:
    """What killed writers left among the checkpoints, and what one writes just now."""
    return sorted(folder.glob(".*.tmp"))


def pointed(pointer: Path) -> str:
    """The name in a pointer file: a plain one, so that a crafted file leads nowhere else."""
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not name.startswith(STEP_PREFIX) or not name.removeprefix(STEP_PREFIX).isdecimal():
        raise CheckpointError(
            f"{pointer}: names {name[:80]!r}, expected step_NUMBER; write the name of a folder beside it there"
        )
    return name


def _write(folder: Path, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
    """The two files of a checkpoint."""
    flat = {f"{kind}/{name}": tensor for kind, named in state.tensors.items() for name, tensor in named.items()}
    save_file(flat, folder / STATE_FILE, metadata={"format": str(FORMAT)})
    digest = file_sha256(folder / STATE_FILE, lambda _: heartbeat.written())
    content = dict(meta) | {"format": FORMAT, "step": step, "files": {STATE_FILE: digest}}
    content["digest"] = _digest(content)
    (folder / META_FILE).write_text(_as_text(content), encoding="utf-8")


def _as_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def find(path: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder, or the one that a checkpoint folder is or the file `checkpoints/best` names; verified.

    A run folder's is the one that `latest` names; the newest of the others, with a warning, where that one is missing, incomplete or altered.
    None: the run has none yet.

    Raises:
        CheckpointError: there is no such folder; the checkpoint asked for is incomplete or altered; a run has checkpoints but no whole one.
    """
    if path.parent.name == CHECKPOINTS and path.name == LATEST:
        return _newest_whole(path.parent)
    if path.parent.name == CHECKPOINTS and path.name == BEST and path.is_file():
        return verify(path.parent / pointed(path))
    if (path / META_FILE).is_file() or path.parent.name == CHECKPOINTS:
        return verify(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run folder or checkpoint folder")
    return _newest_whole(path / CHECKPOINTS)


def _newest_whole(folder: Path) -> Checkpoint | None:
    """The checkpoint that `latest` names if it is whole, else the newest whole one; none where the folder has neither.

    Raises:
        CheckpointError: there are checkpoints, or `latest` names one, but none is whole; the message has a line for each.
    """
    candidates, faults, pointer = step_folders(folder), list[str](), folder / LATEST
    try:
        named = folder / pointed(pointer)
        candidates = [named, *(path for path in candidates if path != named)]
    except FileNotFoundError:
        if not candidates:
            return None
        faults.append(f"{pointer}: missing")
    except (OSError, CheckpointError) as error:
        faults.append(str(error))
    for path in candidates:
        try:
            found = verify(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            log.warning("%s is the newest whole checkpoint and is used: %s", path, "; ".join(faults))
        return found
    raise CheckpointError(
        f"{folder}: no whole checkpoint: {'; '.join(faults)}. Put one back, or remove this folder to start the run at step 0"
    )


def find_until(run_dir: Path, step: int) -> Checkpoint | None:
    """The newest whole checkpoint of a run's first ``step`` steps; none where there is none. One that is not whole is passed over, with a warning."""
    for path in step_folders(run_dir / CHECKPOINTS):
        if step_of(path) <= step:
            try:
                return verify(path)
            except CheckpointError as error:
                log.warning("passed over: %s", error)
    return None


def require(path: Path) -> Checkpoint:
    """As `find`, but a run folder without a checkpoint is an error too."""
    found = find(path)
    if found is None:
        raise CheckpointError(f"{path}: holds no checkpoint")
    return found


def load_state(checkpoint: Checkpoint) -> TrainState:
    """The whole state of a verified checkpoint."""
    state = TrainState()
    for key, tensor in read_tensor_file(checkpoint.path / STATE_FILE, CheckpointError).items():
        kind, _, name = key.partition("/")
        if kind not in state.tensors:
            raise CheckpointError(f"{checkpoint.path / STATE_FILE}: unknown kind of entry {key!r}")
        state.tensors[kind][name] = tensor
    for kind in KINDS:
        check_names(f"{checkpoint.path / STATE_FILE} ({kind})", state.tensors[kind], state.names)
    return state


def load_parameters(path: str | Path) -> dict[str, Tensor]:
    """The trained parameters (float32, by name) of a run folder's newest checkpoint or of a checkpoint folder.

    Raises:
        CheckpointError: no, incomplete or altered checkpoint.
    """
    return parameters_of(require(Path(path)))


def parameters_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The trained parameters (float32, by name) of a verified checkpoint."""
    prefix = PARAMETER + "/"
    found = read_tensor_file(checkpoint.path / STATE_FILE, CheckpointError, lambda name: name.startswith(prefix))
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def check_names(where: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Every wanted name is found and no other; else a CheckpointError lists both kinds."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        raise CheckpointError(f"{where}: {_listing('lacks', missing)}; {_listing('has what the model lacks:', extra)}")


def copy_parameters(
    where: str, parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]
) -> list[str]:
    """Copy those values that the model has a parameter for; return the names of the model's parameters that were left alone.

    Raises:
        CheckpointError: the model has no parameter of that name, or one of another shape.
    """
    extra = sorted(set(values) - set(parameters))
    if extra:
        raise CheckpointError(f"{where}: {_listing('has what the model lacks:', extra)}; train the same modalities")
    for name, value in values.items():
        if parameters[name].shape != value.shape:
            raise CheckpointError(
                f"{where}: {name} is {list(value.shape)}, the model's is {list(parameters[name].shape)}"
            )
        parameters[name].data.copy_(value)
    return sorted(set(parameters) - set(values))


def _listing(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{what} {len(names)} parameters ({', '.join(names[:10])}{more})" if names else f"{what} nothing"


def verify(path: Path) -> Checkpoint:
    """The checkpoint in a folder, all its bytes compared with their sha256; ``CheckpointError`` says what is wrong with it."""
    try:
        meta = parse_foreign(read_bytes(path / META_FILE).decode("utf-8"), str(path / META_FILE))
    except OSError as error:
        raise CheckpointError(
            f"{path / META_FILE}: cannot be read ({error.strerror}); it is not a whole checkpoint, use another one"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path / META_FILE}: altered or cut off, not JSON ({error}); use another checkpoint"
        ) from error
    if not isinstance(meta, dict) or meta.get("digest") != _digest(meta):
        raise CheckpointError(f"{path / META_FILE}: altered, its digest does not fit; use another checkpoint")
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path / META_FILE}: format {meta.get('format')!r}, this version reads {FORMAT}")
    files = meta.get("files")
    if not isinstance(files, dict) or STATE_FILE not in files or count(meta.get("step")):
        raise CheckpointError(f"{path / META_FILE}: lacks its files or its step; use another checkpoint")
    for name, expected in files.items():
        file = path / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; use another checkpoint")
        if file_sha256(file) != expected:
            raise CheckpointError(f"{file}: altered, its sha256 is not the recorded one; use another checkpoint")
    return Checkpoint(path, meta)


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of a checkpoint.json's content, its own digest left out."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True))
