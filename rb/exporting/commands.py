"""``rb export`` and ``rb push``: a run's adapters as folders, and folders to the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import say
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
    parser.set_defaults(run=run_push)


def run_export(args: argparse.Namespace) -> int:
    """Write the folders."""
    from rb.exporting.writing import export_run  # loads transformers and peft, which other commands need not wait for

    modalities = export_run(args.run_dir, args.out, args.base, args.merge, args.foundation, args.allow)
    say(f"{', '.join(modalities)} in {args.out}")
    return FINISHED


def run_push(args: argparse.Namespace) -> int:
    """List what goes and, unless it is a dry run, upload it."""
    files = export_files(args.folder)
    for path in files:
        say(f"{path.stat().st_size:>14,}  {path.relative_to(args.folder).as_posix()}")
    total = sum(path.stat().st_size for path in files)
    say(f"{total:>14,}  bytes in {len(files)} files to {args.repo}")
    if args.dry_run:
        say("dry run: nothing was sent")
        return FINISHED
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(args.repo, private=args.private, exist_ok=True)
    names = [path.relative_to(args.folder).as_posix() for path in files]
    sent = api.upload_folder(repo_id=args.repo, folder_path=args.folder, allow_patterns=names, commit_message="rb push")
    say(f"{sent}")
    return FINISHED


def export_files(folder: Path) -> list[Path]:
    """What of an export goes to the hub, in order of names.

    Raises:
        ExportError: not an export.
    """
    from rb.checkpoints.export_folder import ExportError, is_export

    if not is_export(folder):
        raise ExportError(
            f"{folder}: no export; make one with rb export RUN_DIR --out DIR, and push that or one of its folders"
        )
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(folder).parts)
    )
