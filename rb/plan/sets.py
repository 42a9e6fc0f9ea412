"""What ``rb plan`` knows of a run's data: its manifests where they are there, else the paper's sets in their place, and says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rb.core.config import DataSource, RunConfig
from rb.core.modality import modality_spec
from rb.core.text import TextProcessor
from rb.costs.typical_batch import TYPICAL, Typical
from rb.data.formats import find_manifest, read_manifest
from rb.data.index import ManifestReader
from rb.data.order import Arrangement
from rb.data.pipeline import open_training_data

READ = 400  # captions of a manifest whose tokens are counted, spread evenly
# The paper's sets as they stand in for manifests: samples of a set shown once.
SHOWN_TWICE = {"point_cloud_region": 2}  # TYPICAL counts ScanRefer as the run files show it


@dataclass(frozen=True)
class SetFacts:
    """Of all sets of a modality.

    Attributes:
        samples: of an epoch.
        encoded: sources read and encoded in an epoch: one for each group of captions.
        sources: different ones.
        typical: means, tokens of a caption among them.
        stand_in: whether the paper's set is in the place of a manifest that is not here.
        lengths: whether tokens were counted in the captions.
    """

    samples: int
    encoded: float
    sources: float
    typical: Typical
    stand_in: bool
    lengths: bool

    @property
    def repeated(self) -> float:
        """How often an epoch encodes the same source."""
        return self.encoded / self.sources


def facts_of(config: RunConfig, text: TextProcessor | None) -> dict[str, SetFacts]:
    """Modality -> facts, in the order of their turns.

    Args:
        text: tokenizers of the foundation; none where it is not here.
    """
    found = {}
    for modality in config.train.in_order(config.data.train or config.model.train_modalities):
        listed = config.data.train.get(modality, (DataSource(""),))
        there = all(_is_there(source) for source in listed)
        found[modality] = (
            _counted(config, modality, text) if there else _stand_in(modality, listed, config.data.group_by_source)
        )
    return found


def _is_there(source: DataSource) -> bool:
    if not source.manifest or "${" in source.manifest:
        return False
    try:
        read_manifest(find_manifest(source.manifest))
    except (ValueError, OSError):
        return False
    return True


def _stand_in(modality: str, listed: Sequence[DataSource], group: int) -> SetFacts:
    typical = TYPICAL[modality]
    once = typical.samples // SHOWN_TWICE.get(modality, 1)
    samples = sum(min(source.first or once, once) * source.repeat for source in listed)
    captions = typical.objects * typical.captions
    shown = sum(source.repeat for source in listed) / len(listed)
    sources = samples / captions / shown
    return SetFacts(
        samples, sources * shown * max(1.0, captions / group), sources, typical, stand_in=True, lengths=False
    )


def _counted(config: RunConfig, modality: str, text: TextProcessor | None) -> SetFacts:
    listed = config.data.train[modality]
    opened = open_training_data({modality: listed}, config.seed, Arrangement.of(config.data))[modality]
    samples = len(opened.stream)
    counts = [reader.manifest.counts for reader in opened.readers]
    records, objects, captions = (sum(count[name] for count in counts) for name in ("records", "objects", "samples"))
    regional = modality_spec(modality).regional
    typical = replace(
        TYPICAL[modality],
        objects=objects / records if regional else 1.0,
        captions=captions / (objects if regional else records),
        samples=samples,
    )
    if text is not None:
        tokens = np.concatenate([_tokens(reader, text) for reader in opened.readers]).mean(axis=0)
        typical = replace(typical, qformer_tokens=float(tokens[0]), llm_tokens=float(tokens[1]))
    encoded = opened.stream.num_groups
    for reader in opened.readers:
        reader.close()
    return SetFacts(samples, encoded, records, typical, stand_in=False, lengths=text is not None)


def _tokens(reader: ManifestReader, text: TextProcessor) -> np.ndarray:
    """Tokens of some captions in the Q-Former and in the LLM, start and end included, cut at the run's longest: [n, 2]."""
    step = max(1, len(reader) // READ)
    captions = [caption for number in range(0, len(reader), step) for caption in reader.sample(number).references]
    lengths = [
        [2 + len(ids) for ids in tokenizer(captions, add_special_tokens=False)["input_ids"]]
        for tokenizer in (text.qformer_tokenizer, text.llm_tokenizer)
    ]
    return np.minimum(np.array(lengths).T, text.max_text_tokens)
