"""``rb metrics doctor``: runs two captions through every metric and says of each whether it works or what to do.

The demo asks ``missing`` before it starts.
"""

from __future__ import annotations

import math
from pathlib import Path

from rb.core.metrics import METRICS
from rb.evaluation.caption_metrics import score_captions
from rb.evaluation.java import JavaMissingError, coco_jars, find_java
from rb.evaluation.meteor import Meteor
from rb.evaluation.spice_jars import SpiceMissingError, spice_jars

TESTED_JAVA = range(17, 26)
# Captions equal to their references: each metric's best value is known. Two, as CIDEr is 0 for one.
CAPTIONS = {"1": "a small red cube stands left of the green ball", "2": "two brown dogs run along an empty beach"}


def missing() -> list[str]:
    """What METEOR and SPICE lack here, a line with its remedy for each; found without running anything but ``java -version``."""
    found = []
    for what, look in (("Java, for METEOR and SPICE", find_java), ("the jars of SPICE", spice_jars)):
        try:
            look()
        except (JavaMissingError, SpiceMissingError) as error:
            found.append(f"{what}: {error}")
    return found


def diagnose(meteor: Meteor | None = None, spice_cache: Path | None = None) -> list[tuple[bool, str, str]]:
    """(works, what, answer or remedy) for Java, the jars and each metric; takes 10 to 30 s.

    ``meteor`` and ``spice_cache`` are as in ``score_captions``; by default nothing is reused, as a check should do.
    """
    report = []
    try:
        java = find_java()
        tested = "" if java.major in TESTED_JAVA else "; tested are 17 to 25"
        report.append((True, "Java", f"{java.version} ({java.path}){tested}"))
    except JavaMissingError as error:
        report.append((False, "Java", str(error)))
    report.append((True, "pycocoevalcap", str(coco_jars())))
    jars_remedy = ""
    try:
        report.append((True, "SPICE's jars", ", ".join(str(jar) for jar in spice_jars())))
    except SpiceMissingError as error:
        jars_remedy = str(error)
        report.append((False, "SPICE's jars", jars_remedy))

    found = score_captions(
        CAPTIONS, {i: [text] for i, text in CAPTIONS.items()}, spice_cache=spice_cache, meteor=meteor
    )
    tokeniser = (
        "Stanford's PTB"
        if found.tokeniser == "ptb"
        else "the simple one: scores are not comparable with published ones"
    )
    report.append((found.tokeniser == "ptb", "tokeniser", tokeniser))
    for name, metric in METRICS.items():
        value = found.scores[name]
        if value is None:
            reason = found.skipped[name]
            report.append((False, name, "see SPICE's jars" if reason == jars_remedy else reason))
        elif metric.perfect is None or math.isclose(value, metric.perfect, rel_tol=0.01):
            report.append((True, name, f"{value:.3f}"))
        else:
            remedy = "reinstall pycocoevalcap" + (" and fetch the jars again" if name == "SPICE" else "")
            report.append((False, name, f"gave {value:.3f} where {metric.perfect:.3f} is right; {remedy}"))
    return report
