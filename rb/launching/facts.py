"""Facts of one node for the checks before a launch: plain JSON, within a second, without torch. Compared in ``checks.py``.

Who uses it: the agent of every node, and ``rb doctor``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rb
from rb.core.config import AUTO, RunConfig
from rb.core.files import sha256
from rb.core.install import PACKAGE, git_commit, installed_versions
from rb.core.modality import modality_spec
from rb.core.run_file import from_tree, to_tree
from rb.core.strict_json import parse_foreign, read_bytes
from rb.data import shared_memory
from rb.launching import file_facts, machine

PACKAGES = ("torch", "deepspeed", "transformers", "peft")
SOURCES = (".py", ".json", ".yaml")
IMAGE_SIDE = 224  # where a foundation does not say it


def make_request(
    config: RunConfig,
    ranks: int,
    run_dir: Path,
    controller: tuple[str, int] | None = None,
    ports: Sequence[int] = (),
    full: bool = False,
    checkpoint_bytes: int | None = None,
) -> dict[str, Any]:
    """What ``node_facts`` is asked, as plain JSON.

    Args:
        config: the run, its paths absolute.
        ranks: of this node.
        run_dir: its run folder.
        controller: address and port by which the node reaches the controller; none on the controller's own host.
        ports: that the process group will listen on at this node.
        full: read every byte of data and foundation.
        checkpoint_bytes: size of one checkpoint, if it is known.
    """
    return {
        "config": to_tree(config),
        "ranks": ranks,
        "run_dir": str(run_dir),
        "controller": list(controller) if controller else None,
        "ports": list(ports),
        "full": full,
        "checkpoint_bytes": checkpoint_bytes,
    }


def node_facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of this node. What fails is a text under "problem" in its place; only a wrong request raises ``ValueError``."""
    config = from_tree(RunConfig, dict(request["config"]))
    ranks, controller, environ = int(request["ranks"]), request.get("controller"), dict(os.environ)
    full = bool(request.get("full"))
    foundation = file_facts.foundation_facts(file_facts.foundation_of(config), full)
    batch = batch_bytes(config, ranks)
    look: dict[str, Callable[[], Any]] = {
        "python": machine.python_version,
        "versions": versions,
        "commit": git_commit,
        "source": source_digest,
        "data": lambda: file_facts.data_facts(file_facts.manifests_of(config), full),
        "gpus": lambda: machine.gpus(environ),
        "memory": lambda: machine.memory() | {"needed": file_facts.weights_bytes(foundation)},
        "shm": lambda: _shared_memory(batch, config.data.num_workers, ranks),
        "disk": lambda: machine.disk(Path(request["run_dir"])) | {"needed": _disk_needed(request, config)},
        "files": machine.open_files,
        "interface": lambda: machine.interface(controller) if controller else {},
        "ports": lambda: machine.ports(request.get("ports") or ()),
        "environment": lambda: machine.hurting_variables(environ, alone=controller is None),
    }
    facts: dict[str, Any] = {"host": socket.gethostname(), "ranks": ranks, "full": full, "foundation": foundation}
    for name, fact in look.items():
        try:
            facts[name] = fact()
        except (OSError, ValueError) as error:
            facts[name] = {"problem": str(error)}
    return facts | {"time": time.time()}  # last: the controller compares it with its own when this arrives


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and of this one."""
    return {"regionblip": rb.__version__} | installed_versions(PACKAGES)


def source_digest(package: Path = PACKAGE) -> str:
    """sha256 over names and contents of the package's own source files."""
    files = sorted(path for path in package.rglob("*") if path.suffix in SOURCES and "__pycache__" not in path.parts)
    return sha256("".join(f"{path.relative_to(package).as_posix()}:{sha256(path.read_bytes())};" for path in files))


def batch_bytes(config: RunConfig, ranks: int) -> int:
    """Bytes of the largest micro-batch's inputs (uint8 images, float32 clouds); its texts are small beside them.

    With ``auto`` it is at most the share of a rank, were those of this node all.
    """
    train = config.train
    samples = -(-train.global_batch_size // ranks) if train.micro_batch_size == AUTO else train.micro_batch_size
    sides = 3 * _image_side(Path(config.model.foundation.blip2)) ** 2
    sizes = [0]
    for modality in config.data.train:
        spec = modality_spec(modality)
        points = (config.model.num_scene_points if spec.regional else None) or config.model.num_points
        # A source of another kind counts nothing: its loaders say themselves where there is no room.
        sizes.append({"image": sides, "points": points * 6 * 4}.get(spec.source, 0))
    return max(sizes) * samples


def _image_side(folder: Path) -> int:
    try:
        tree = parse_foreign(read_bytes(folder / "config.json").decode(), str(folder))
        side = tree["vision_config"]["image_size"]
        return side if isinstance(side, int) and 0 < side < 10_000 else IMAGE_SIDE
    except (OSError, ValueError, KeyError, TypeError):
        return IMAGE_SIDE


def _shared_memory(batch: int, num_workers: int, ranks: int) -> dict[str, Any]:
    room = shared_memory.size()
    return {"free": room[0] if room else None, "needed": shared_memory.needed(batch, num_workers, ranks)}


def _disk_needed(request: Mapping[str, Any], config: RunConfig) -> int | None:
    """Bytes of all checkpoints that lie there at once: those that are kept, and the one that is being written."""
    size = request.get("checkpoint_bytes")
    return None if size is None else int(size) * (config.train.keep_checkpoints + 1)
