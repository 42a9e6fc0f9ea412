"""What a user asked of `rb launch`. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rb.core.config import RunConfig
from rb.launching.launchers import Place


@dataclass(frozen=True)
class Launch:
    """What the user asked for."""

    module: str
    """What a rank runs: `rb.train`."""
    launcher: str
    """One of ``launchers.LAUNCHERS``."""
    places: tuple[Place, ...]
    """The nodes, rank 0's first."""
    config: RunConfig
    """The run, its paths absolute."""
    what: tuple[str, ...]
    """Arguments of `rb.train` at the first start: ``--run FILE`` or ``--resume DIR``."""
    options: tuple[str, ...] = ()
    """Further ones, at every start: overrides, ``--allow foundation``."""
    restart: int = 0
    """Restarts at most."""
    min_nodes: int = 0
    """A restart goes on with so many nodes where others are lost; 0 is all."""
    accepted: tuple[str, ...] = ()
    """Checks whose failure is accepted."""
    full: bool = False
    """Read every byte of data and foundation."""
    check_only: bool = False
    """End after the checks."""
    try_sum: bool = True
    """Compute a small sum on the real process group before the training starts."""
    control_port: int = 0
    """The controller listens there; 0 takes a free one."""
    master_port: int = 0
    """Rank 0 listens there; 0 takes a free one."""
    meeting: tuple[str, int] = ("", 0)
    """torchrun: address and port where its agents meet."""
    run_dir: Path = field(default=Path())
    """The run folder."""
