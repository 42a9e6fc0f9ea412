"""What a check found: data, a table of nodes and checks, and which failures a user may accept. Knows nothing of how a check is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rb.core.output import aligned
from rb.core.text import one_line

OK, WARNING, FAILED = "ok", "warning", "failed"
EVERYWHERE = "all"  # node of a finding about the job as a whole
WIDTH = 100  # letters of a line of the table

# Check -> (may a failure be accepted with --allow, what it looks at), in the order of the table.
CHECKS: dict[str, tuple[bool, str]] = {
    "secrets": (False, "no password, token or key on a command line"),
    "reach": (False, "the node answers over ssh, and has Python, the package and the run folder"),
    "python": (True, "same version of Python"),
    "versions": (True, "same versions of torch, deepspeed, transformers, peft and this package"),
    "commit": (True, "same commit of the checkout"),
    "source": (True, "same source files of the package, uncommitted changes included"),
    "data": (False, "every manifest there and the same, its shards there in full size"),
    "foundation": (False, "checkpoint files of the foundation and init_from there and the same"),
    "gpus": (False, "a GPU for every rank, of one kind; or none on any node"),
    "memory": (True, "main memory for the weights"),
    "shm": (True, "/dev/shm holds the batches that loader processes make ahead"),
    "disk": (True, "room for the checkpoints"),
    "folder": (False, "the run folder can be written"),
    "files": (True, "how many files a process may have open"),
    "clock": (True, "clock against the clock of the controller"),
    "interface": (True, "the network interface towards the controller"),
    "ports": (False, "ports of the process group are free"),
    "environment": (True, "no variable of the shell that breaks the process group"),
    "batch": (False, "batch sizes divide over the ranks"),
    "run": (False, "nothing that the dry run of a training would refuse"),
    "allreduce": (False, "a process group of the ranks computes a sum"),
}
ALLOWED = tuple(name for name, (allowed, _) in CHECKS.items() if allowed)


@dataclass(frozen=True)
class Finding:
    """One check of one node."""

    node: str
    """Its name, or ``EVERYWHERE``."""
    check: str
    """A key of ``CHECKS``."""
    state: str
    """``OK``, ``WARNING`` or ``FAILED``."""
    value: str = ""
    """What was found."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""

    def __post_init__(self) -> None:
        assert self.check in CHECKS, self.check
        # Values come from other hosts and from names of files: one line each, whatever is in them.
        object.__setattr__(self, "value", one_line(self.value))
        object.__setattr__(self, "remedy", one_line(self.remedy))

    def line(self) -> str:
        """Node, check, value and remedy in one line."""
        return ": ".join((self.node, self.check, "; ".join(filter(None, (self.value, self.remedy)))))

    def to_tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a launch."""
    return [finding for finding in findings if finding.state == FAILED]


def accept(findings: Iterable[Finding], allow: Sequence[str]) -> list[Finding]:
    """``findings`` with failures of the checks in ``allow`` as warnings.

    Raises:
        ValueError: ``allow`` names a check that may not be accepted, or none at all.
    """
    for name in allow:
        if name not in ALLOWED:
            raise ValueError(
                f"--allow {name}: choose from {', '.join(ALLOWED)}; failures of other checks cannot be accepted"
            )
    return [replace(f, state=WARNING) if f.state == FAILED and f.check in allow else f for f in findings]


def table(findings: Sequence[Finding]) -> str:
    """Checks as rows and nodes as columns, several blocks where they are many; below it a line for every warning and failure.

    A single node has the values that were found in the table, too.
    """
    states = {(f.node, f.check): f.state for f in sorted(findings, key=_weight)}
    nodes = list(dict.fromkeys(f.node for f in findings if f.node != EVERYWHERE)) or [EVERYWHERE]
    checks = [name for name in CHECKS if any(f.check == name for f in findings)]
    alone = len(nodes) == 1
    room = WIDTH - max(map(len, [*checks, "check"]))
    blocks: list[list[str]] = [[]]
    for node in nodes:
        if blocks[-1] and sum(max(len(name), len(WARNING)) + 2 for name in (*blocks[-1], node)) > room:
            blocks.append([])
        blocks[-1].append(node)
    lines: list[str] = []
    for block in blocks:
        rows = [["check", *block, *(["found"] if alone else [])]]
        for name in checks:
            cells = [_shown(states.get((node, name)) or states.get((EVERYWHERE, name))) for node in block]
            rows.append([name, *cells, *([_values(findings, name)] if alone else [])])
        lines += [*aligned(rows, len(rows[0])), ""]
    told = [f for f in findings if f.state != OK]
    lines += [f"{_shown(f.state)}: {f.line()}" for f in sorted(told, key=_weight, reverse=True)]
    return "\n".join(lines).rstrip("\n")


def _values(findings: Sequence[Finding], check: str) -> str:
    return "; ".join(dict.fromkeys(f.value for f in findings if f.check == check and f.value))


def _shown(state: str | None) -> str:
    return "-" if state is None else state.upper() if state == FAILED else state


def _weight(finding: Finding) -> int:
    return (OK, WARNING, FAILED).index(finding.state)
