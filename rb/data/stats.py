"""What is in sets of shards, counted from every record: the columns of the paper's Table 3 and more. Used by ``rb data stats``.

A word is what stands between white space, punctuation included. An object is a region with its box; a text is one caption, or question.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rb.core import progress
from rb.core.files import digest64
from rb.core.modality import modality_spec
from rb.core.output import aligned
from rb.core.urls import Location
from rb.data.formats import Record
from rb.data.index import ManifestReader
from rb.data.predictions import sample_id
from rb.sources.table import source_of


@dataclass
class SetStats:
    """Counts of one set, or of several together.

    Attributes:
        sources, objects: digests of their ids, so that what is in two sets counts once in their sum.
        lengths: number of words -> texts of this length.
        vocabulary: lower-case words.
        per_source: number of regions -> sources with so many.
        sizes: bin of ``region_limits`` of the source -> regions in it.
        rejected: what the converter left out, by reason.
        questions: by the type of their answers, of which there are ``answers``.
        domains: sources by theirs.
    """

    modality: str
    sources: set[int] = field(default_factory=set)
    objects: set[int] = field(default_factory=set)
    lengths: Counter[int] = field(default_factory=Counter)
    vocabulary: set[str] = field(default_factory=set)
    per_source: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    domains: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record, sizes: Sequence[float]) -> None:
        """One record; ``sizes`` of its regions, in the unit of its source."""
        self.sources.add(digest64(record.source_id.encode()))
        regional = modality_spec(self.modality).regional
        for item in record.objects if regional else ():
            self.objects.add(digest64(sample_id(record.source_id, item.object_id).encode()))
        texts = [text for item in record.objects for text in item.captions] if regional else record.captions
        for text in (asked.question for asked in record.questions) if record.questions else texts:
            words = text.split()
            self.lengths[len(words)] += 1
            self.vocabulary.update(word.lower() for word in words)
        for asked in record.questions:
            self.questions[asked.answer_type or "no type"] += 1
            self.answers += len(asked.answers)
        if record.domain:
            self.domains[record.domain] += 1
        if regional:
            self.per_source[len(record.objects)] += 1
        limits = source_of(self.modality).region_limits
        self.sizes.update(bisect.bisect_right(limits, size) for size in sizes)

    def merge(self, other: SetStats) -> None:
        """Take in another set of the same modality."""
        self.sources |= other.sources
        self.objects |= other.objects
        self.vocabulary |= other.vocabulary
        for mine, its in (
            (self.lengths, other.lengths),
            (self.per_source, other.per_source),
            (self.sizes, other.sizes),
        ):
            mine.update(its)
        for names, others in (
            (self.rejected, other.rejected),
            (self.questions, other.questions),
            (self.domains, other.domains),
        ):
            names.update(others)
        self.answers += other.answers

    def numbers(self) -> dict[str, Any]:
        """The statistics, ready for JSON; entries that a modality does not have are left out."""
        found: dict[str, Any] = {
            "sources": len(self.sources),
            "objects": len(self.objects),
            "texts": self.lengths.total(),
            "words": {"mean": _mean(self.lengths), "median": _median(self.lengths), "max": max(self.lengths)},
            "vocabulary": len(self.vocabulary),
        }
        if self.per_source:
            found["regions per source"] = {
                "mean": _mean(self.per_source),
                "median": _median(self.per_source),
                "max": max(self.per_source),
            }
        source = source_of(self.modality)
        if self.sizes:
            names = _bins(source.region_limits)
            regions = {name: self.sizes[i] for i, name in enumerate(names)}
            found["region sizes"] = {"unit": source.region_unit, "regions": regions}
        if self.questions:
            found["questions"] = dict(sorted(self.questions.items()))
            found["answers"] = self.answers
        if self.domains:
            found["domains"] = dict(sorted(self.domains.items()))
        found["rejected"] = dict(sorted(self.rejected.items()))
        return found


def set_stats(manifest: Location) -> tuple[ManifestReader, SetStats]:
    """The statistics of one set; every record is read and checked against its digest.

    Raises:
        ValueError: no manifest there, or a record that was altered.
    """
    reader = ManifestReader(manifest)
    about = reader.manifest
    found = SetStats(about.modality, rejected=Counter(about.rejected))
    source = source_of(about.modality)
    sized = modality_spec(about.modality).regional and about.features is None
    with progress.bar(total=about.counts["records"], desc=f"{about.name} {about.split}", unit="record", delay=5) as bar:
        for record, stored in reader.records():
            found.add(record, source.region_sizes(stored, [item.box for item in record.objects]) if sized else ())
            bar.update()
    reader.close()
    return reader, found


def collect(manifests: Sequence[Location]) -> dict[str, Any]:
    """``sets``: one entry a manifest; ``together``: per modality with several sets, what is in both counted once."""
    sets: list[dict[str, Any]] = []
    sums: dict[str, SetStats] = {}
    members: Counter[str] = Counter()
    for manifest in manifests:
        reader, found = set_stats(manifest)
        about = reader.manifest
        sets.append(
            {"manifest": str(reader.path), "name": about.name, "split": about.split, "modality": about.modality}
            | found.numbers()
        )
        members[about.modality] += 1
        sums.setdefault(about.modality, SetStats(about.modality)).merge(found)
    together = [
        {"modality": name, "sets": members[name]} | total.numbers() for name, total in sums.items() if members[name] > 1
    ]
    return {"sets": sets, "together": together}


def as_text(found: dict[str, Any]) -> str:
    """The tables of ``collect`` for people."""
    rows = [
        ("set", "split", "modality", "sources", "objects", "texts", "words", "median", "vocabulary", "objects a source")
    ]
    for one in found["sets"] + found["together"]:
        several = one.get("regions per source")
        rows.append(
            (
                *_called(one),
                one["modality"],
                f"{one['sources']:,}",
                f"{one['objects']:,}" if several else "-",
                f"{one['texts']:,}",
                f"{one['words']['mean']:.2f}",
                f"{one['words']['median']:g}",
                f"{one['vocabulary']:,}",
                f"{several['mean']:.2f}" if several else "-",
            )
        )
    lines = [*aligned(rows, 3), *_region_sizes(found["sets"] + found["together"])]
    for one in found["sets"]:
        title = f"{one['name']} {one['split']}"
        for name in ("questions", "domains", "rejected"):
            if one.get(name):
                counts = ", ".join(f"{what} {count:,}" for what, count in one[name].items())
                answers = f"; answers {one['answers']:,}" if name == "questions" else ""
                lines.append(f"{title}, {name}: {counts}{answers}")
    return "\n".join(lines)


def _called(one: dict[str, Any]) -> tuple[str, str]:
    return one.get("name", f"{one.get('sets')} sets together"), one.get("split", "")


def _region_sizes(sets: list[dict[str, Any]]) -> list[str]:
    """A table for each unit: which shares of the regions have which size."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for one in sets:
        if "region sizes" in one:
            sizes = one["region sizes"]
            rows = tables.setdefault(sizes["unit"], [("set", "split", *sizes["regions"])])
            total = sum(sizes["regions"].values())
            rows.append((*_called(one), *(f"{count / total:.1%}" for count in sizes["regions"].values())))
    return [line for unit, rows in tables.items() for line in (f"regions by {unit}:", *aligned(rows, 2, "  "))]


def _mean(counts: Counter[int]) -> float:
    return sum(value * count for value, count in counts.items()) / counts.total()


def _median(counts: Counter[int]) -> float:
    """Of the values that were counted; between the two in the middle if their number is even."""
    values = sorted(counts)
    ends, total = [], 0
    for value in values:
        total += counts[value]
        ends.append(total)
    middle = [values[bisect.bisect_right(ends, place)] for place in ((total - 1) // 2, total // 2)]
    return sum(middle) / 2


def _bins(limits: Sequence[float]) -> list[str]:
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(limits)]
    return [f"below {limits[0]:g}", *between, f"{limits[-1]:g} and more"]
