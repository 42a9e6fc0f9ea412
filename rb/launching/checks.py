"""Judges the facts of all nodes before a rank is started: what must be the same is compared, what must suffice is measured against its need.

Facts are what ``facts.py`` gathers on each node; the controller adds "received", its own clock when they arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rb.core.config import AUTO, RunConfig
from rb.core.run_file import from_tree
from rb.data.shared_memory import REMEDY as SHM_REMEDY
from rb.launching.findings import EVERYWHERE, FAILED, OK, WARNING, Finding

CLOCK_WARNS_S, CLOCK_FAILS_S = 2.0, 10.0
FEW_FILES, TOO_FEW_FILES = 1024, 256  # open files of a process: 64 shards of each manifest, sockets, shared memory
FEW_INODES = 1000
GB = 1e9
MOST_NAMED = 3  # differences in one message
Known = Mapping[str, Any]
Verdict = tuple[str, str, str]  # state, value, remedy


def compare(facts: Mapping[str, Known], request: Known) -> list[Finding]:
    """The findings of all checks that facts decide, for every node.

    Args:
        facts: node -> its facts, in the order of the nodes.
        request: what the nodes were asked (``facts.make_request``); only its configuration counts here.
    """
    config = from_tree(RunConfig, dict(request["config"]))
    found = []
    for node, known in facts.items():
        for check, (section, judge) in ALONE.items():
            problem = _problem(known.get(section))
            if problem:
                found.append(Finding(node, check, FAILED, problem))
            elif section in known and known[section] != {}:
                found.append(Finding(node, check, *judge(known)))
    bad = {(f.node, f.check) for f in found if f.state == FAILED}
    for check, (parts, remedy) in TOGETHER.items():
        alike = {node: parts(known) for node, known in facts.items() if (node, check) not in bad}
        found += _same(check, alike, remedy)
    return [*found, *_gpus(facts), _batch(config, sum(int(known["ranks"]) for known in facts.values()))]


def _problem(section: object) -> str:
    return str(section.get("problem") or "") if isinstance(section, Mapping) else ""


# What a node decides by itself.


def _memory(known: Known) -> Verdict:
    copies = (
        int(known["ranks"]) if not known["gpus"].get("usable") else 1
    )  # a GPU's rank maps the files, a CPU's holds them
    free, needed = known["memory"]["free"], known["memory"]["needed"] * copies
    value = f"{free / GB:.1f} GB free, weights take {needed / GB:.1f}"
    if free >= needed:
        return OK, value, ""
    return WARNING, value, "run fewer ranks there, or end what else takes memory"


def _shm(known: Known) -> Verdict:
    free, needed = known["shm"]["free"], known["shm"]["needed"]
    if free is None:
        return (OK, "no /dev/shm, none needed", "") if not needed else (FAILED, "no /dev/shm", SHM_REMEDY)
    value = f"{free / GB:.2f} GB free, batches take up to {needed / GB:.2f}"
    return (OK, value, "") if free >= needed else (FAILED, value, SHM_REMEDY)


def _disk(known: Known) -> Verdict:
    disk = known["disk"]
    free, needed, inodes = disk["free"], disk["needed"], disk["inodes"]
    if inodes is not None and inodes < FEW_INODES:
        return (
            FAILED,
            f"{disk['place']} has room for {inodes} more files",
            "remove files there, or use another output_dir",
        )
    if free is None:
        return OK, f"{disk['place']} does not say how much room it has", ""
    if needed is None:
        return OK, f"{free / GB:.1f} GB free", ""
    value = f"{free / GB:.2f} GB free, the checkpoints take {needed / GB:.2f}"
    remedy = f"free space in {disk['place']}, use another output_dir, or lower train.keep_checkpoints"
    return (OK, value, "") if free >= needed else (FAILED, value, remedy)


def _folder(known: Known) -> Verdict:
    disk = known["disk"]
    if disk["unwritable"]:
        return FAILED, disk["unwritable"], "change its owner or mode, or use another output_dir"
    return OK, f"{disk['place']} can be written", ""


def _files(known: Known) -> Verdict:
    limit = known["files"]["soft"]
    value = f"at most {limit:,} open files a process"
    if limit >= FEW_FILES:
        return OK, value, ""
    return (FAILED if limit < TOO_FEW_FILES else WARNING), value, f"raise it: `ulimit -n {FEW_FILES}`"


def _clock(known: Known) -> Verdict:
    if "received" not in known:
        return OK, "this host's own", ""
    ahead = known["time"] - known["received"]
    value = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the controller"
    remedy = "set the clock there (chrony or ntpd keeps it right)"
    return (
        (FAILED, value, remedy)
        if abs(ahead) > CLOCK_FAILS_S
        else (WARNING, value, remedy)
        if abs(ahead) > CLOCK_WARNS_S
        else (OK, value, "")
    )


def _interface(known: Known) -> Verdict:
    return OK, f"{known['interface']['name']} ({known['interface']['address']})", ""


def _ports(known: Known) -> Verdict:
    taken = [f"port {port} is not free ({why})" for port, why in known["ports"].items() if why]
    if not taken:
        return OK, f"{', '.join(known['ports'])} free", ""
    return (
        FAILED,
        "; ".join(taken),
        "end what listens there (`ss -ltnp` shows it), or choose another port",
    )


def _environment(known: Known) -> Verdict:
    found = known["environment"]
    if not found:
        return OK, "nothing that hurts", ""
    only_devices = all(what.startswith("CUDA_VISIBLE_DEVICES") for what, _ in found)
    return WARNING if only_devices else FAILED, "; ".join(what for what, _ in found), "; ".join(how for _, how in found)


def _manifests(known: Known) -> Verdict:
    wrong = [_named(name, row["problem"]) for name, row in known["data"].items() if row.get("problem")]
    if wrong:
        remedy = "copy the set there whole, or mount it under the same path; `rb data verify` reads every byte"
        return FAILED, _first(wrong), remedy
    return OK, f"{len(known['data'])} manifests, their shards in full size", ""


def _named(name: str, problem: str) -> str:
    return problem if problem.startswith(name) else f"{name}: {problem}"


def _weights(known: Known) -> Verdict:
    wrong = [f"{key}: {row['problem']}" for key, row in known["foundation"].items() if row.get("problem")]
    if wrong:
        return FAILED, _first(wrong), "copy the folder there whole, or mount it under the same path"
    number = sum(len(row["files"]) for row in known["foundation"].values())
    return OK, f"{number} files{'' if known.get('full') else ', by headers and sizes'}", ""


ALONE: dict[str, tuple[str, Callable[[Known], Verdict]]] = {
    "data": ("data", _manifests),
    "foundation": ("foundation", _weights),
    "memory": ("memory", _memory),
    "shm": ("shm", _shm),
    "disk": ("disk", _disk),
    "folder": ("disk", _folder),
    "files": ("files", _files),
    "clock": ("time", _clock),
    "interface": ("interface", _interface),
    "ports": ("ports", _ports),
    "environment": ("environment", _environment),
}

# What all nodes must have alike: check -> (its parts as texts, what to do).


def _foundation_parts(known: Known) -> dict[str, str]:
    return {
        f"{key}: {name}": f"{size:,} bytes, digest {digest[:12]}"
        for key, row in known["foundation"].items()
        for name, (size, digest) in row.get("files", {}).items()
    }


TOGETHER: dict[str, tuple[Callable[[Known], dict[str, str]], str]] = {
    "python": (
        lambda known: {"Python": known["python"]},
        "install the same Python there, or use one environment for all",
    ),
    "versions": (
        lambda known: known["versions"],
        "install it there with `pip install -c constraints.txt`, or use one environment for all",
    ),
    "commit": (
        lambda known: {"commit": known["commit"][:12] + known["commit"][40:]},
        "check out the same commit there",
    ),
    "source": (
        lambda known: {"digest of the package's files": known["source"][:12]},
        "copy the checkout there, or use the same commit without changes (`git status` shows them)",
    ),
    "data": (
        lambda known: {name: f"digest {row['digest'][:12]}" for name, row in known["data"].items() if "digest" in row},
        "copy the set there from one node; `rb data diff` shows what differs",
    ),
    "foundation": (_foundation_parts, "copy the folder there from one node"),
}


def _same(check: str, parts: Mapping[str, Mapping[str, str]], remedy: str) -> list[Finding]:
    """Findings of nodes that differ from most nodes in a part; for the others one that it is the same, where no other check says so."""
    common = {name: _most(known.get(name) for known in parts.values()) for known in parts.values() for name in known}
    found = []
    for node, known in parts.items():
        wrong = [
            f"{name} {known.get(name, 'missing')}, on {_others(parts, name, wanted, node)} {wanted or 'missing'}"
            for name, wanted in common.items()
            if known.get(name) != wanted
        ]
        if wrong:
            found.append(Finding(node, check, FAILED, _first(wrong), remedy))
        elif check not in ALONE:
            found.append(Finding(node, check, OK, ", ".join(f"{name} {value}" for name, value in known.items())))
    return found


def _most(values: Iterable[str | None]) -> str | None:
    """The value that most nodes have; of equally many the first node's."""
    counted = Counter(value for value in values if value is not None).most_common(1)
    return counted[0][0] if counted else None


def _others(parts: Mapping[str, Mapping[str, str]], name: str, wanted: str | None, node: str) -> str:
    """The nodes that have the value that most have; there is one, as ``node`` has another."""
    having = [other for other, known in parts.items() if known.get(name) == wanted and other != node]
    return having[0] if len(having) == 1 else f"{having[0]} and {len(having) - 1} more"


def _gpus(facts: Mapping[str, Known]) -> list[Finding]:
    """A GPU for every rank on every node, of one kind; or none on any node."""
    found = []
    any_gpu = any(known["gpus"].get("usable") for known in facts.values())
    kinds = {
        node: sorted({(d["name"], d["memory_mb"]) for d in known["gpus"].get("devices", [])})
        for node, known in facts.items()
    }
    usual = _most(str(kind) for kind in kinds.values())
    for node, known in facts.items():
        seen, ranks = known["gpus"], int(known["ranks"])
        problem = _problem(seen)
        usable = seen.get("usable", 0)
        limit = f" (CUDA_VISIBLE_DEVICES={seen['visible']})" if seen.get("visible") is not None else ""
        shown = ", ".join(f"{name} {memory / 1024:.0f} GB" if memory else name for name, memory in kinds[node])
        if problem:
            found.append(Finding(node, "gpus", FAILED, problem))
        elif not any_gpu:
            found.append(Finding(node, "gpus", OK, f"none{limit}; {ranks} rank(s) on the CPU"))
        elif usable < ranks:
            remedy = (
                f"set slots={usable} for it in the hostfile"
                if usable
                else "mend its driver (nvidia-smi), or leave the node out"
            )
            found.append(Finding(node, "gpus", FAILED, f"{usable} GPUs for {ranks} ranks{limit}", remedy))
        elif str(kinds[node]) != usual:
            found.append(
                Finding(
                    node,
                    "gpus",
                    WARNING,
                    f"{shown}, unlike the other nodes",
                    "leave it out if it slows the others down",
                )
            )
        else:
            found.append(Finding(node, "gpus", OK, f"{usable} x {shown}{limit}"))
    return found


def _batch(config: RunConfig, ranks: int) -> Finding:
    try:
        layout = config.train.layout(ranks)
    except ValueError as error:  # names the keys, and sizes that would do
        return Finding(EVERYWHERE, "batch", FAILED, str(error))
    if config.train.micro_batch_size == AUTO:
        share = layout.global_batch_size // ranks
        return Finding(
            EVERYWHERE,
            "batch",
            OK,
            f"{layout.global_batch_size} = {ranks} ranks x {share}, divided as memory allows (auto)",
        )
    value = f"{layout.global_batch_size} = {ranks} ranks x {layout.micro_batch_size} x {layout.grad_accum_steps} accumulated"
    return Finding(EVERYWHERE, "batch", OK, value)


def _first(problems: list[str]) -> str:
    more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return "; ".join(problems[:MOST_NAMED]) + more
