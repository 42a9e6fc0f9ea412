"""``rb export`` and ``rb push``: a run's adapters as folders, and folders to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, say, say_json
from rb.inference.commands import add_foundation


def add_export(parser: argparse.ArgumentParser) -> None:
    """``rb export``."""
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="run folder (newest), or in it checkpoints/best or step_*"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--base", help="hub id of the foundation's BLIP-2 (default: inferred from the folder name)")
    parser.add_argument("--merge", action="store_true", help="also fold LoRA into whole BLIP-2 folders")
    add_foundation(parser)
    parser.set_defaults(run=run_export)


def add_push(parser: argparse.ArgumentParser) -> None:
    """``rb push``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export, or one modality's folder of it")
    parser.add_argument("--repo", required=True, help="OWNER/NAME on the hub")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    add_json(parser)
    parser.set_defaults(run=run_push)


def run_export(args: argparse.Namespace) -> int:
    """Write the folders."""
    from rb.exporting.writing import export_run  # loads transformers and peft, which other commands need not wait for

    modalities = export_run(args.run_dir, args.out, args.base, args.merge, args.foundation, args.allow)
    say(f"{', '.join(modalities)} in {args.out}")
    return FINISHED


def run_push(args: argparse.Namespace) -> int:
    """List what goes and, unless it is a dry run, upload exactly that."""
    from rb.checkpoints.export_folder import files_of

    files = files_of(args.folder)
    names = [path.relative_to(args.folder).as_posix() for path in files]
    sizes = [path.stat().st_size for path in files]
    if not args.json:
        for name, size in zip(names, sizes, strict=True):
            say(f"{size:>14,}  {name}")
        say(f"{sum(sizes):>14,}  bytes in {len(files)} files to {args.repo}")
    commit = None if args.dry_run else _upload(args.repo, args.private, dict(zip(names, files, strict=True)))
    if args.json:
        listed = [{"name": name, "bytes": size} for name, size in zip(names, sizes, strict=True)]
        say_json({"repo": args.repo, "files": listed, "bytes": sum(sizes), "commit": commit})
    else:
        say("dry run: nothing was sent" if commit is None else commit)
    return FINISHED


def _upload(repo: str, private: bool, files: Mapping[str, Path]) -> str:
    """One commit of these files, by their names in the repository; the commit's address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
    return str(api.create_commit(repo, added, commit_message="rb push"))
