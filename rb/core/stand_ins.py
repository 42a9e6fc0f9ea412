"""What lies under a data file's name where a download went wrong: pointers of git-lfs and git-annex, web pages. Said by the readers' errors."""

from __future__ import annotations

_MARK = b"\xef\xbb\xbf"


def stand_in(data: bytes) -> str | None:
    """What ``data``, the begin of a file, is in the file's place, and what to do; none where it seems to be the file itself."""
    head = data[:1024].removeprefix(_MARK).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository"
    if head.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "it is a git-annex pointer, not the file itself; run `git annex get` in its repository"
    if head[:64].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not the file itself; open it in a browser to see what was answered, and download the file again"
    return None
