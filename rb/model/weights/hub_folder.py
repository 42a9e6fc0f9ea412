"""A Hugging Face model folder: which files hold its weights (one, or shards with an index; safetensors or ``.bin``), read shard by shard.

Who uses it: the loaders of BLIP-2 and of the text branch, and the converter. What the weights are called is their business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rb.model.weights.ledger import listing
from rb.model.weights.readers import CheckpointError, Reader, read_headers, read_json

# In transformers' order of preference; ``.index.json`` lists shards.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class HubFolder:
    """Its folder, the files with weights in reading order; if sharded, the index and the names of weights that it lists."""

    path: Path
    shards: tuple[Path, ...]
    index: Path | None = None
    listed: frozenset[str] = frozenset()

    @property
    def files(self) -> list[Path]:
        """Everything that its identity depends on, ``config.json`` included."""
        index = [self.index] if self.index else []
        return [self.path / "config.json", *index, *self.shards]

    def read(self, reader: Reader) -> Iterator[tuple[Path, dict[str, Tensor]]]:
        """One shard after another; only one is held unless the caller keeps it."""
        for shard in self.shards:
            yield shard, reader(shard)

    def headers(self) -> dict[str, tuple[Path, Tensor]]:
        """Name -> (its file, its shape and type on the meta device); no tensor is read.

        Raises:
            CheckpointError: a name in two shards, or shards that do not hold what the index says.
        """
        found: dict[str, tuple[Path, Tensor]] = {}
        for shard, tensors in self.read(read_headers):
            twice = sorted(set(tensors) & set(found))
            if twice:
                raise CheckpointError(
                    f"{shard} repeats {len(twice)} weights of other shards: {listing(twice)}; "
                    f"files of two checkpoints may be mixed in {self.path}: download it again"
                )
            found |= {name: (shard, tensor) for name, tensor in tensors.items()}
        if self.index:
            lost = sorted(self.listed - set(found))
            if lost:
                raise CheckpointError(
                    f"{self.index} lists {len(lost)} weights that its shards do not have: {listing(lost)}; download them again"
                )
        return found


def open_folder(path: Path, option: str) -> HubFolder:
    """The folder that an option names.

    Raises:
        CheckpointError: no folder, no ``config.json``, no weights, or shards missing; says what to do.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{option}: {path} is not a Hugging Face model folder (it has no config.json)")
    name = next((name for name in _NAMES if (path / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"{option}: {path} holds none of {', '.join(_NAMES)}; download its weights")
    if not name.endswith(".index.json"):
        return HubFolder(path, (path / name,))
    weight_map = read_json(path / name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / name} has no weight_map; download it again")
    names = list(dict.fromkeys(str(file) for file in weight_map.values()))
    strange = [file for file in names if Path(file).name != file]
    if strange:
        raise CheckpointError(f"{path / name} names files outside its folder: {listing(strange)}")
    lost = [file for file in names if not (path / file).is_file()]
    if lost:
        raise CheckpointError(
            f"{path} lacks {len(lost)} of {len(names)} shards: {listing(sorted(lost))}; download them"
        )
    return HubFolder(path, tuple(path / file for file in sorted(names)), path / name, frozenset(weight_map))
