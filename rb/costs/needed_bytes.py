"""How many bytes a rank must receive in an optimizer step, from the model's shapes: the yardstick of what is received.

Needed by a rank of W with R samples in the step, of whose bytes (W - 1) / W are on other ranks:

gradients    of the modality's parameters: the sums of the rank's own share of them, as by a reduce-scatter, in the type of the run.
parameters   of the modality, float32: every rank's updated share.
itc          the vectors of all other rows of the pool, and the gradient of the own ones from all other ranks, float32.
itm          frozen features of one chosen image for each row.

Texts, boxes, numbers of samples and norms are thousands of times smaller and count nothing.
"""

from __future__ import annotations

from rb.model.region_blip import RegionBLIP

_BYTES = {"float32": 4, "bfloat16": 2}


def needed_received(model: RegionBLIP, modality: str, rows: int, ranks: int, gradients: str) -> dict[str, float]:
    """Bytes of a step of one micro-batch on each rank, by part, where the step is one pool.

    Args:
        rows: of a micro-batch.
        gradients: ``train.gradient_communication``.
    """
    of, terms = model.of(modality), model.config.terms_of(modality)
    trained = model.trained_numbers(modality)
    others = (ranks - 1) / ranks
    found = {
        "gradients": others * trained * _BYTES[gradients],
        "parameters": others * trained * 4,
    }
    if "itc" in terms or "itm" in terms:
        queries, width = of.parts.query_tokens.shape[1], of.parts.vision_proj.out_features
        vectors = (ranks - 1) * rows * (queries + 1) * width * 4.0
        found["itc"] = 2 * vectors if "itc" in terms else vectors
    if "itm" in terms:
        if of.source.point_encoder:
            points = of.points().config
            numbers = (1 + points.num_group) * points.trans_dim
        else:
            vit = of.blip2.vision_model
            numbers = (1 + vit.embeddings.num_patches) * vit.config.hidden_size
        frozen = model.blip2.language_model.get_input_embeddings().weight.element_size()
        found["itm"] = others * rows * numbers * frozen
    return found
