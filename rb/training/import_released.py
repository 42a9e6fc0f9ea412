"""``rb import-released FILE --run RUN --out RUN_DIR``: a released RegionBLIP checkpoint as a run folder of this project.

The folder has the resolved configuration, the loader's report, a checkpoint of step 0 without optimizer state, and the row of [DEC] and LM
bias that the weights were trained beside: prediction reads it as any other, and a run starts from it by ``init_from``. What goes where is in ``rb/model/weights/released.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch

from rb.checkpoints.checkpoint import PARAMETER, TrainState, save
from rb.core.config import RunConfig
from rb.core.files import write_whole
from rb.core.fingerprints import fingerprint
from rb.core.run_file import digest, dump_run, to_tree
from rb.core.run_layout import RUN_CONFIG, RUN_ENVIRONMENT, RUN_TEXT_HEAD, RUN_WEIGHTS
from rb.model.weights.build import build_model
from rb.model.weights.ledger import FROM
from rb.model.weights.readers import read_tensors
from rb.model.weights.released import import_released, text_head
from rb.training.run_folder import RunFolder, environment, package_versions


def import_run(file: Path, config: RunConfig, out: Path) -> list[str]:
    """Build the run's model, read the released file into it, write the run folder; lines that say what became of every key.

    Raises:
        ValueError: the foundation or the file does not fit, or there is a run in ``out`` already.
    """
    tensors = read_tensors(file)
    head = text_head(tensors)
    with TemporaryDirectory() as temporary:  # nothing is written into ``out`` before all is read
        place = Path(temporary) / RUN_TEXT_HEAD
        safetensors.torch.save_file(head, place)
        with_head = _with_head(config, str(place)) if head else config
        built = build_model(with_head.model, config.seed, torch.device("cpu"))
        account = import_released(built.model, tensors, str(file))
        identity = built.foundation
    if head:
        config = _with_head(config, RUN_TEXT_HEAD)  # found in the run folder, wherever that is moved
    for target, key in account.origins.items():
        built.ledger.origins[target] = f"{file.name}{FROM}{key}"
    for key, reason in account.left_out.items():
        built.ledger.leave_out(file.name, [key], reason)
    state = TrainState()
    state.tensors[PARAMETER] = {
        name: parameter.detach().contiguous() for name, parameter in built.model.trainable_parameters().items()
    }
    meta = {
        "config": to_tree(config),
        "config_digest": digest(config),
        "identities": {"foundation": identity, "data": {}},
        "versions": package_versions(),
        "seed": config.seed,
        "imported": {"file": file.name, "fingerprint": fingerprint([file])},
    }
    folder = RunFolder(out)
    folder.claim(new=True)
    if head:
        write_whole(out / RUN_TEXT_HEAD, safetensors.torch.save(head))
    save(out, 0, state, meta, keep=1)
    folder.write(RUN_WEIGHTS, built.ledger.report(built.model))
    folder.write(RUN_ENVIRONMENT, environment({"imported": file.name}))
    folder.write(RUN_CONFIG, dump_run(config))  # last: with it the folder is a run
    numbers = sum(tensors[key].numel() for key in account.origins.values())
    lines = [f"{file}: {len(tensors)} keys", f"read: {len(account.origins)} ({numbers:,} numbers)"]
    lines += [f"left out: {count} ({reason})" for reason, count in Counter(account.left_out.values()).items()]
    return [
        *lines,
        f"run folder {out}: caption with rb predict --checkpoint {out} --data MANIFEST --modality MODALITY --out {out}/predictions/NAME.jsonl",
    ]


def _with_head(config: RunConfig, path: str) -> RunConfig:
    return replace(config, model=replace(config.model, foundation=replace(config.model.foundation, text_head=path)))
