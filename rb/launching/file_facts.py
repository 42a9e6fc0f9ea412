"""What a node sees of a run's files: manifests with their shards, and the checkpoint files that the run starts from. Without torch, in seconds.

Headers and sizes by default; ``full`` reads every byte (kept in the cache of ``rb/core/fingerprints.py``). A file that cannot be read is a
text in the answer, so that the other facts still arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rb.core.config import RunConfig
from rb.core.fingerprints import cached_sha256, weaker_fingerprint
from rb.core.run_layout import CHECKPOINTS, LATEST
from rb.core.strict_json import read_bytes
from rb.core.tensor_files import SUFFIX, read_shapes
from rb.core.urls import Location, Url, location
from rb.data.formats import find_manifest, manifest_digest, parse_manifest, read_manifest_bytes
from rb.data.shard_files import stored_sha256
from rb.data.store import Store, StoreError

T = TypeVar("T")
THREADS = 8  # a look at a file of a network file system takes milliseconds, and there may be thousands
TENSOR_SUFFIXES = (SUFFIX, ".pth", ".pt", ".bin")
SMALL_SUFFIXES = (".json", ".txt", ".model", ".yaml")  # settings, tokenizers
MOST_NAMED = 3  # files in one message


def manifests_of(config: RunConfig) -> list[str]:
    """The manifests of a run, of training and validation, each once."""
    parts = (config.data.train, config.data.val)
    return list(dict.fromkeys(s.manifest for part in parts for listed in part.values() for s in listed))


def foundation_of(config: RunConfig) -> dict[str, str]:
    """Key -> file or folder of checkpoints that the run reads."""
    given = {f"model.foundation.{k}": v for k, v in vars(config.model.foundation).items() if v}
    return given | ({"init_from": config.init_from} if config.init_from else {})


def data_facts(manifests: Sequence[str], full: bool = False) -> dict[str, dict[str, Any]]:
    """Manifest -> its digest and what is wrong with it or its files, empty where nothing is."""
    return {name: _guarded(_manifest, name, full) for name in manifests}


def foundation_facts(parts: Mapping[str, str], full: bool = False) -> dict[str, dict[str, Any]]:
    """Key -> {"path", "files": name -> [bytes, digest], "problem"} of every file that counts."""
    return {key: {"path": path} | _guarded(_checkpoint, path, full) for key, path in parts.items()}


def weights_bytes(facts: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of the files with tensors of the foundation, from ``foundation_facts``."""
    files = [file for part in facts.values() for file in part.get("files", {}).items()]
    return sum(int(size) for name, (size, _) in files if name.endswith(TENSOR_SUFFIXES))


def _guarded(look: Callable[[Any, bool], dict[str, Any]], path: str, full: bool) -> dict[str, Any]:
    try:
        return look(location(path), full)
    except (ValueError, OSError) as error:
        return {"problem": str(error)}


def _manifest(place: Location, full: bool) -> dict[str, str]:
    path = find_manifest(place)
    content = read_manifest_bytes(path)
    manifest = parse_manifest(content, str(path))
    wanted = {entry.file: (entry.bytes, entry.sha256) for entry in manifest.shards}
    wanted[manifest.index.file] = (manifest.index.bytes, manifest.index.sha256)

    def wrong(name: str) -> str:
        folder, (size, digest) = path.parent, wanted[name]
        try:
            found = Store(folder).size(name) if isinstance(folder, Url) else (folder / name).stat().st_size
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        except StoreError as error:
            return str(error)
        if found != size:
            return f"{name} has {found:,} bytes, the manifest says {size:,}"
        if not full or digest == (
            stored_sha256(folder, name, size, lambda _: None)
            if isinstance(folder, Url)
            else cached_sha256(folder / name)
        ):
            return ""
        return f"{name} was altered (sha256)"

    problems = [problem for problem in _in_threads(wrong, wanted) if problem]
    return {"digest": manifest_digest(content), "problem": _first(problems)}


def _checkpoint(path: Path, full: bool) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ValueError(f"{path}: does not exist")
    files = [] if path.is_dir() else [path]
    wanted = (*SMALL_SUFFIXES, *TENSOR_SUFFIXES) if path.is_dir() else SMALL_SUFFIXES
    files += [file for file in sorted(folder.iterdir()) if file.suffix in wanted and file.is_file() and file != path]
    latest = folder / CHECKPOINTS / LATEST
    if latest.is_file():  # a run folder: its newest checkpoint
        newest = latest.parent / Path(read_bytes(latest, 200).decode(errors="replace").strip()).name
        files += [latest, *sorted(file for file in newest.iterdir() if file.is_file())]
    if not files:
        raise ValueError(f"{path}: holds no checkpoint file")

    def look(file: Path) -> tuple[str, list[Any], str]:
        name = file.relative_to(folder).as_posix()
        try:
            if file.suffix == SUFFIX:
                read_shapes(file)
            digest = cached_sha256(file) if full else weaker_fingerprint([file])
            return name, [file.stat().st_size, digest], ""
        except (ValueError, OSError) as error:
            return name, [0, ""], str(error)

    found = _in_threads(look, files)
    return {"files": {name: row for name, row, _ in found}, "problem": _first([why for *_, why in found if why])}


def _in_threads(work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def _first(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return "; ".join(problems[:MOST_NAMED]) + more
