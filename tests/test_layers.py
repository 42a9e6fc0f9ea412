"""The floor plan: a file imports, or starts as a process, only what is in lower layers or its own folder; never upwards."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYER = {
    "rb.core": 0,
    "rb.sources": 1,
    "rb.checkpoints": 1,
    "rb.drawing": 1,
    "rb.tracking": 1,
    "rb.data": 2,
    "rb.model": 2,
    "rb.costs": 3,
    "rb.inference": 3,
    "rb.evaluation": 3,
    "rb.pages": 4,
    "rb.exporting": 4,
    "rb.api": 4,
    "rb.serving": 5,
    "rb.mining": 5,
    "rb.training": 5,
    "rb.launching": 6,
    "rb.train": 7,
    "rb.toy": 7,
    "rb.ablate": 7,
    "rb.jobs": 7,
    "rb.bench": 7,
    "rb.plan": 7,
    "rb.gpu_check": 7,
    "rb.cli": 8,
    "eval": 9,
}
# Rooms of one layer that may use each other; any other import inside a layer is across a wall.
DOORS: set[tuple[str, str]] = {("rb.sources", "rb.drawing"), ("rb.ablate", "rb.train"), ("rb.plan", "rb.bench")}


def room_of(module: str) -> str | None:
    return next(
        (room for room in sorted(LAYER, key=len, reverse=True) if module == room or module.startswith(room + ".")), None
    )


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def named_modules(path: Path, known: Collection[str]) -> set[str]:
    """Modules of ours that a file names in a string, as a whole or before a colon: it starts them as processes or imports them later."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text.split(":")[0] for text in texts if "." in text} & set(known)


def our_files() -> dict[str, Path]:
    files = [*(ROOT / "rb").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def test_imports_go_down() -> None:
    wrong, files = [], our_files()
    for module, path in files.items():
        here = room_of(module)
        if here is None:
            assert module == "rb", f"{module} belongs to no room: give it a place in LAYER"
            continue
        for imported in imports_of(path) | named_modules(path, files):
            there = room_of(imported)
            if there is None or there == here:
                continue
            if LAYER[there] > LAYER[here] or (LAYER[there] == LAYER[here] and (here, there) not in DOORS):
                wrong.append(f"{module} may not import {imported}: layer {LAYER[here]} -> {LAYER[there]}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_a_process_counts_as_an_import(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    known = {"rb", "rb.cli", "rb.train", "rb.evaluation.commands", "eval.predict"}
    file.write_text(
        '"""Not rb.train."""\nrun([python, "-m", "eval.predict"])\nlazy("rb.evaluation.commands:add")\nlog("rb.steps")'
    )
    assert named_modules(file, known) == {"eval.predict", "rb.evaluation.commands"}


def test_no_cycles() -> None:
    files = our_files()
    graph = {m: {i for i in imports_of(p) if i in files and i != m} for m, p in files.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "import cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_one_user_of_each_engine() -> None:
    users: dict[str, set[str]] = {"deepspeed": set(), "torch.distributed": set()}
    for module, path in our_files().items():
        for name, found in users.items():
            if any(i == name or i.startswith(name + ".") for i in imports_of(path)):
                found.add(module)
    assert users == {"deepspeed": {"rb.training.engine"}, "torch.distributed": {"rb.core.dist"}}


def test_every_file_says_what_it_is_for_and_stays_small() -> None:
    for module, path in our_files().items():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{module} has no first lines"
        assert len(text.splitlines()) <= 400, f"{module} has {len(text.splitlines())} lines, more than 400"


def test_files_of_tests_stay_small() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines, more than 400"
