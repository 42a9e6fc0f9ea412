"""``rb score``, ``rb table``, ``rb metrics``: scores of prediction files, the table of a run, the metrics' check and their jars."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rb.core.exit_codes import FAILED, FINISHED
from rb.core.metrics import cider_remark
from rb.core.output import add_json, note, say, say_json
from rb.evaluation.task_commands import add_task_options, run_task


def add_score(parser: argparse.ArgumentParser) -> None:
    """``rb score``."""
    parser.add_argument("predictions", nargs="*", type=Path, help="files that rb predict wrote, one set each")
    parser.add_argument(
        "--coco-results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="in their place: others' predictions in COCO's result format, [{image_id, caption}]",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="with --coco-results: COCO's captions_*.json, or a file like it",
    )
    parser.add_argument(
        "--lmms-eval",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="in their place: others' predictions as lmms-eval logs them, *_samples_TASK.jsonl",
    )
    add_task_options(parser)
    parser.add_argument("--out", type=Path, help="metrics.json (one file only); default RUN_DIR/metrics/NAME.json")
    parser.add_argument(
        "--truth", action="append", type=Path, metavar="FILE", help="toy world: truth.json of the scenes (repeatable)"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="compute only these metrics, e.g. CIDEr")
    parser.add_argument("--attainable", action="store_true", help="also what a perfect captioner would score")
    parser.add_argument("--no-java", action="store_true", help="without METEOR, SPICE and the PTB tokeniser")
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the scores")
    parser.add_argument("--spice-cache", type=Path, help="folder of SPICE's parsed captions (default: in ~/.cache)")
    parser.add_argument("--no-spice-cache", action="store_true", help="parse all captions again for SPICE")
    add_json(parser)
    parser.set_defaults(run=run_score)


def run_score(args: argparse.Namespace) -> int:
    """Score each file; several files share one process of each Java program. ``args.judge_of`` makes a judge of toy captions from truth files."""
    if args.task:
        return run_task(args)
    from rb.evaluation.caption_metrics import METRICS
    from rb.evaluation.scoring import metrics_path, score_files
    from rb.evaluation.spice import default_cache

    if sum(map(bool, (args.predictions, args.coco_results, args.lmms_eval))) != 1:
        raise ValueError(
            "give either files that rb predict wrote, or --coco-results with --annotations, or --lmms-eval"
        )
    if bool(args.coco_results) != (args.annotations is not None):
        raise ValueError("--coco-results FILE and --annotations FILE belong together; give both")
    files = args.predictions or args.coco_results or args.lmms_eval
    if args.out and len(files) > 1:
        raise ValueError("--out names one file, but several files are to be scored; leave it out")
    unknown = [name for name in args.metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: unknown; choose from {', '.join(METRICS)}")
    judge = args.judge_of(args.truth) if args.truth else None
    outs = [args.out] if args.out else [metrics_path(path) for path in files]
    found = score_files(
        files,
        outs,
        use_java=not args.no_java,
        use_mlflow=not args.no_mlflow,
        spice_cache=None if args.no_spice_cache else args.spice_cache or default_cache(),
        metrics=args.metrics or METRICS,
        judge=judge,
        annotations=args.annotations,
        attainable=args.attainable,
        lmms_eval=bool(args.lmms_eval),
    )
    results, notes = {str(out): result for out, result in zip(outs, found, strict=True)}, set[str]()
    for out, result in results.items():
        if not args.json:
            scores = "  ".join(f"{name} {value:.4f}" for name, value in result["scores"].items() if value is not None)
            say(f"{out}: {_counted(result)}  {scores}")
            for part, own in result.get("parts", {}).items():
                values = "  ".join(f"{name} {value:.4f}" for name, value in own["scores"].items() if value is not None)
                say(f"  {part}: {own['num_examples']:,} captions  {values}")
        _tell_once(result, notes)
    if args.json:
        say_json(results)
    return FINISHED


def _counted(result: dict[str, Any]) -> str:
    """How much was scored, and by which protocol."""
    policy = f" ({result['reference_policy']})" if result["reference_policy"] else ""
    return f"{result['num_examples']:,} captions, {result['num_references']:,} references{policy}"


def _tell_once(result: dict[str, Any], told: set[str]) -> None:
    """What was skipped and why, and what a score cannot tell, each line once, on stderr."""
    lines = [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    cut = result["spice_cut"]
    if cut and cut["predictions"] + cut["references"]:
        lines.append(
            f"note: SPICE read only the first {cut['words']} words of {cut['predictions']} predictions and {cut['references']} references"
        )
    if result["tokeniser"] != "ptb":
        lines.append(
            "note: tokenised without Stanford's PTB tokeniser, so scores may differ slightly from published ones"
        )
    remark = cider_remark(result["attainable"])
    if remark:
        lines.append(f"note: {remark}")
    for line in lines:
        if line not in told:
            note(line)
            told.add(line)


def add_table(parser: argparse.ArgumentParser) -> None:
    """``rb table``."""
    parser.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="run folder with scored predictions")
    parser.add_argument("--paper", action="store_true", help="print the paper's Tables 1 to 3 instead of a run's table")
    add_json(parser)
    parser.set_defaults(run=run_table)


def run_table(args: argparse.Namespace) -> int:
    """Print a table like the paper's Table 1 from RUN_DIR/metrics/*.json, or the paper's own tables; as data with ``--json``."""
    from rb.evaluation.paper import format_paper, read_paper
    from rb.evaluation.table import format_table, format_truth, read_metrics

    if (args.run_dir is not None) == args.paper:
        raise ValueError("give either RUN_DIR, a run folder with scores, or --paper for the paper's own tables")
    if args.paper:
        if args.json:
            say_json(read_paper())
        else:
            say(format_paper().rstrip("\n"))
        return FINISHED
    metrics = read_metrics(args.run_dir)
    if args.json:
        say_json(metrics)
        return FINISHED
    truth = format_truth(metrics)
    say((format_table(metrics) + (f"\n{truth}" if truth else "")).rstrip("\n"))
    return FINISHED


def add_install(parser: argparse.ArgumentParser) -> None:
    """``rb metrics install``."""
    parser.description = "Put Stanford CoreNLP 3.6.0 (GPL-3), which SPICE needs, where it is looked for; files are compared with known sha256."
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR|URL",
        help="folder or address that holds the two jars (default: Maven Central)",
    )
    parser.set_defaults(run=run_install)


def run_install(args: argparse.Namespace) -> int:
    """Fetch what is missing; a line for each jar."""
    from rb.evaluation.spice_jars import MAVEN_CENTRAL, install

    for line in install(args.source or MAVEN_CENTRAL):
        say(line)
    return FINISHED


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """``rb metrics doctor``."""
    add_json(parser)
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Run two captions through every metric and print what works; FAILED if anything does not."""
    from rb.evaluation.doctor import diagnose

    report = diagnose()
    if args.json:
        say_json([{"works": works, "part": part, "answer": answer} for works, part, answer in report])
    else:
        for works, part, answer in report:
            say(f"{'ok     ' if works else 'MISSING'} {part:<14} {answer}")
    return FINISHED if all(works for works, _, _ in report) else FAILED
