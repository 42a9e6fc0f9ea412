"""Names of metrics in the journal and in MLflow: the one file that builds and reads them.

train/lr                               STAGE/VALUE                       of the whole run
train/image_region/loss_itc            STAGE/MODALITY/loss_TERM          a loss term, of training or validation
train/image_region/nonfinite_itc       STAGE/MODALITY/nonfinite_TERM     how often a term, or `grad`, the gradient, was not finite
val/image_region/CIDEr                 STAGE/MODALITY/VALUE              a validation score, or a speed in training
eval/refcoco/test/CIDEr                eval/DATASET/SPLIT/METRIC         a scored prediction file of the trained model
eval/refcoco/test/crops/CIDEr          eval/DATASET/SPLIT/VARIANT/METRIC the same of another variant (base, crops, shuffled, blind)
eval/refcoco/tiny/ours/CIDEr           eval/TASK/MODEL/VARIANT/METRIC    a cell of a plan of evaluations
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TRAIN, VAL, EVAL = "train", "val", "eval"
# Values of the whole run and speeds, under TRAIN.
RATE, EPOCH, GRAD_NORM, SPEED, SKIPPED = "lr", "epoch", "grad_norm", "samples_per_s", "skipped_steps"
TOTAL = "total"  # the weighted sum of the loss terms, logged beside them
GRADIENT = "grad"  # in the place of a term, where only the gradient was not finite
_LOSS, _NONFINITE = "loss_", "nonfinite_"


@dataclass(frozen=True)
class MetricName:
    """A metric's name in its parts; ``str()`` puts them together.

    Attributes:
        stage: ``TRAIN``, ``VAL`` or ``EVAL``.
        value: what is measured: ``lr``, ``loss_itc``, ``CIDEr``.
        place: the modality; under ``EVAL`` data set, split and perhaps variant; empty for the whole run.
    """

    stage: str
    value: str
    place: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.stage, self.place, self.value) if part)

    @property
    def term(self) -> str | None:
        """The loss term, ``TOTAL`` included; none where this is not a loss."""
        return self.value.removeprefix(_LOSS) if self.value.startswith(_LOSS) and self.stage != EVAL else None


def loss_name(stage: str, modality: str, term: str) -> str:
    """``train/image_region/loss_itc``."""
    return str(MetricName(stage, _LOSS + term, modality))


def nonfinite_name(modality: str, term: str) -> str:
    """``train/image_region/nonfinite_itc``, ``train/image_region/nonfinite_grad``."""
    return value_name(TRAIN, _NONFINITE + term, modality)


def value_name(stage: str, value: str, modality: str = "") -> str:
    """``train/lr``, ``train/image_region/samples_per_s``, ``val/image_region/CIDEr``."""
    return str(MetricName(stage, value, modality))


def evaluation_name(dataset: str, split: str, metric: str) -> str:
    """``eval/refcoco/test/CIDEr``; ``metric`` may carry a variant: ``crops/CIDEr``."""
    return str(MetricName(EVAL, metric, f"{dataset}/{split}"))


def cell_name(task: str, model: str, variant: str, metric: str) -> str:
    """``eval/refcoco/tiny/ours/CIDEr``: of a cell of a plan of evaluations."""
    return str(MetricName(EVAL, metric, f"{task}/{model}/{variant}"))


def shown_values(values: Mapping[str, float]) -> str:
    """Values of one stage for a log line: ``image_region/loss_itc=1.234 lr=0.0001``, without the stage."""
    return " ".join(f"{name.split('/', 1)[1]}={value:.4g}" for name, value in values.items())


def parse_name(text: str) -> MetricName | None:
    """The parts of a name that one of the functions above built; none for a name of another form."""
    stage, *middle, value = text.split("/") if "/" in text else ("", text)
    if not value or not all(middle):
        return None
    whole_run, one_modality = stage == TRAIN and not middle, stage in (TRAIN, VAL) and len(middle) == 1
    if whole_run or one_modality or (stage == EVAL and len(middle) >= 2):
        return MetricName(stage, value, "/".join(middle))
    return None
