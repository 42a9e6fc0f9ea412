"""What the program prints: every text in its source that can reach a user, and which of them tell the user to do something.

A text counts as a remedy by its words alone: a clause that begins with a verb in the imperative, a command of ours or of a shell, an option
behind a semicolon, "did you mean". Docstrings, help of options and markup do not count, nor texts of the toy world's and the paper's tables.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Verbs with which a clause can tell someone what to do.
VERBS = """accept add allow ask bring change check choose clip close convert copy correct delete divide download edit export fetch fill free give
install keep leave let list load look lower make mend move name open pack pass pip predict prepare put raise reinstall reject remove rename repair
reset restore run save say scale score see set shrink start take thin train try undo unpack unset use wait write""".split()  # noqa: SIM905
_CLAUSE = rf"(?:^|[;:.,(?] |\b(?:or|and|then|first|please|instead) )(?:{'|'.join(VERBS)})\b(?! of\b| files? \{{| folders? +\{{|[:.=])"
_ASKS = re.compile(
    rf"(?i:{_CLAUSE})"
    r"|`(?:rb|python|git|tar|docker|pip|apt-get|mlflow|--)|(?<![-\w/.])(?:rb|pip|docker|apt-get|git) [a-z]+ (?:[-A-Z{]|[a-z]+ [-A-Z{])"
    r"|`\{\} --help`|[Dd]id you mean|[;,] (?:or )?--[a-z]|must be unpacked|should look like|\bgo on with|\bdo not use|needs a (?:[-\w]+ )?folder"
)
# Names of values that hold a remedy, which is a text of its own.
_FILLED = re.compile(r"(?i)remedy|how_to|index_again|\bhint\b(?!\.)|_conversion|instead|upgrade")
# Calls whose texts are help, not an answer to a fault.
_HELP = {
    "add_argument",
    "add_argument_group",
    "add_mutually_exclusive_group",
    "ArgumentParser",
    "Command",
    "Html",
    "compile",
}


class Message(NamedTuple):
    """A text of the source: ``text`` has ``{}`` for what is filled in; ``filled``: the expressions there."""

    place: str
    text: str
    filled: tuple[str, ...]

    @property
    def room(self) -> str:
        """``rb/core``, ``rb/data/prepare``: the folder of its file, or ``launch``."""
        return self.place.rsplit("/", 1)[0]

    def is_remedy(self) -> bool:
        if len(self.text.split()) < 3:
            return False
        return bool(_ASKS.search(self.text)) or any(_FILLED.search(name) for name in self.filled)

    def pattern(self) -> re.Pattern[str]:
        """Finds this message, with anything filled in, in what was printed."""
        return re.compile(".*?".join(map(re.escape, self.text.split("{}"))), re.DOTALL)


@cache
def messages() -> tuple[Message, ...]:
    """Every text of rb/, eval/ and launch/ but docstrings, help and markup."""
    found: list[Message] = []
    for path in sorted([*(ROOT / "rb").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]):
        for line, text, filled in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            if text.strip() and not re.search(r"</|<\w+[ >]", text):
                found.append(Message(f"{path.relative_to(ROOT).as_posix()}:{line}", text, filled))
    for path in sorted((ROOT / "launch").glob("*.s*")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for text in re.findall(r'\becho "([^"]*)"', line):
                text = re.sub(r"\$\{[^}]*\}|\$\w+", "{}", text)
                found.append(Message(f"launch/{path.name}:{number}", text, ()))
    return tuple(found)


@cache
def remedies() -> tuple[Message, ...]:
    return tuple(message for message in messages() if message.is_remedy())


def _texts(node: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, text, what is filled in) of every text at and below a node, those inside ``{...}`` of another one too."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring, or the text below a field
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in _HELP:
        return
    if isinstance(node, ast.Assign):
        name = getattr(node.targets[0], "attr", getattr(node.targets[0], "id", ""))
        if name in ("description", "LAYOUT"):  # of a command; of raw files, which a tested message shows
            return
    whole = _whole(node)
    if whole is not None:
        yield node.lineno, whole[0], tuple(map(ast.unparse, whole[1]))  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node) if whole is None else whole[1]:
        yield from _texts(child)


def _whole(node: ast.AST) -> tuple[str, list[ast.expr]] | None:
    """A text, also one put together by ``+`` and by f-strings, and the expressions filled into it; None of what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:[sdr]|\.\d+f|-?\d+s)", "{}", node.value), []
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values]
        return "".join(parts), [p.value for p in node.values if isinstance(p, ast.FormattedValue)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _whole(node.left), _whole(node.right)
        if left or right:
            left, right = left or ("{}", [node.left]), right or ("{}", [node.right])
            return left[0] + right[0], left[1] + right[1]
    return None
