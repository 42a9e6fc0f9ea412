"""Q-Former passes against LAVIS's stage 1 (tiny random weights), against transformers' own calls, and their masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from rb.model.losses import itc_loss, itm_loss, itm_row_weights, similarities, token_loss
from rb.model.pafe import BoxHead, PaFE
from rb.model.qformer import TextBranch, joint_pass, query_and_text_pass, query_pass, text_pass
from tests.support.host_waits import host_waits
from tests.support.numbers import close

GOLDEN = Path(__file__).parents[1] / "golden" / "lavis_stage1.safetensors"


class Golden:
    """The golden's tensors, its weights in our modules."""

    def __init__(self) -> None:
        with safe_open(GOLDEN, "pt") as file:
            self.sizes = json.loads(file.metadata()["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.data = {k: v for k, v in tensors.items() if not k.startswith("state_dict.")}
        self.weights = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}

    def build(self, attention: str = "sdpa") -> tuple[Blip2QFormerModel, TextBranch]:
        names = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
            "encoder_hidden_size cross_attention_frequency layer_norm_eps hidden_act pad_token_id"
        )
        config = Blip2QFormerConfig(**{name: self.sizes[name] for name in names.split()}, use_qformer_text_input=True)
        config._attn_implementation = attention
        qformer, branch = Blip2QFormerModel(config).eval(), TextBranch(config, self.sizes["dec_token_id"])
        qformer_state, branch_state = {}, {}
        for name, value in self.weights.items():
            short = name.removeprefix("Qformer.bert.").replace("attention.self.", "attention.attention.")
            if short.startswith("embeddings.LayerNorm."):
                qformer_state[short.replace("embeddings.LayerNorm", "layernorm")] = value
            elif short.startswith("embeddings."):
                branch_state[short] = value
            elif short.startswith("encoder."):
                qformer_state[short] = value
            elif name.startswith("Qformer.cls.predictions.transform."):
                branch_state[name.removeprefix("Qformer.cls.predictions.")] = value
        branch_state["bias"] = self.weights["Qformer.cls.predictions.decoder.bias"]
        assert torch.equal(
            self.weights["Qformer.cls.predictions.decoder.weight"], branch_state["embeddings.word_embeddings.weight"]
        )
        qformer.load_state_dict(qformer_state)
        branch.load_state_dict(branch_state)
        return qformer.requires_grad_(False), branch.requires_grad_(False)

    def queries(self) -> Tensor:
        return self.weights["query_tokens"].expand(5, -1, -1)

    def linear(self, name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_pass_equals_lavis(golden: Golden, attention: str) -> None:
    qformer, branch = golden.build(attention)
    data, ids, mask = golden.data, golden.data["input_ids"], golden.data["attention_mask"]
    assert mask.min() == 0  # the golden has padding
    out = query_and_text_pass(qformer, branch, golden.queries(), data["image_embeds"], ids, mask)
    close(out.query_output, data["query_output"])
    close(out.text_cls, data["text_output"][:, 0])
    close(text_pass(qformer, branch, ids, mask), data["text_output"][:, 0])

    # ITG: LAVIS's logits of padded places see other padding; they count nowhere.
    logits = branch.logits(out.itg_hidden)
    close(logits * mask[..., None], data["itg_logits"] * mask[..., None])
    weights = mask[:, 1:].float()
    loss_itg = token_loss(branch.logits(out.itg_hidden[:, :-1]), ids[:, 1:], weights, weights.sum(), 1, 0.1)
    close(loss_itg, data["loss_itg"])

    # ITC
    queries = F.normalize(golden.linear("vision_proj", out.query_output), dim=-1)
    texts = F.normalize(golden.linear("text_proj", out.text_cls), dim=-1)
    temperature = golden.weights["temp"].reshape(1)
    sim_i2t, sim_t2i = similarities(queries, texts, queries, texts, temperature)
    loss_itc = itc_loss(sim_i2t, sim_t2i, 0, None)
    close(loss_itc, data["loss_itc"])
    close(sim_i2t * temperature, data["sim_i2t"] * temperature, scale=1.0)
    close(sim_t2i * temperature, data["sim_t2i"] * temperature, scale=1.0)

    # ITM
    image, text = data["itm_negative_image"], data["itm_negative_text"]
    images, pixels = torch.cat((torch.arange(5), image, torch.arange(5))), data["image_embeds"]
    texts = torch.cat((torch.arange(5), torch.arange(5), text))
    states = joint_pass(qformer, branch, golden.queries().repeat(3, 1, 1), pixels[images], ids[texts], mask[texts])
    itm_logits = golden.linear("itm_head", states).mean(1)
    close(itm_logits, data["itm_logits"])
    rows = itm_row_weights(torch.ones(5), torch.ones(5))
    close(itm_loss(itm_logits, rows, rows.sum(), 1), data["loss_itm"])


def test_query_pass_is_what_transformers_does(golden: Golden) -> None:
    qformer, branch = golden.build()
    embeds = golden.data["image_embeds"]
    ours = query_pass(qformer, golden.queries(), embeds)
    theirs = qformer(
        query_embeds=golden.queries(),
        encoder_hidden_states=embeds,
        encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
    ).last_hidden_state
    assert torch.equal(ours, theirs)
    data = golden.data
    both = query_and_text_pass(qformer, branch, golden.queries(), embeds, data["input_ids"], data["attention_mask"])
    close(both.query_output, ours, 2e-6)


def test_masks_let_nothing_through(golden: Golden) -> None:
    qformer, branch = golden.build()
    embeds, ids, mask = (golden.data[name] for name in ("image_embeds", "input_ids", "attention_mask"))
    out = query_and_text_pass(qformer, branch, golden.queries(), embeds, ids, mask)
    padded = torch.where(mask == 0, 7, ids)  # another id in padded places changes nothing that counts
    same = query_and_text_pass(qformer, branch, golden.queries(), embeds, padded, mask)
    assert torch.equal(same.query_output, out.query_output)
    assert torch.equal(same.text_cls, out.text_cls)
    assert torch.equal(same.itg_hidden * mask[..., None], out.itg_hidden * mask[..., None])
    later = ids.clone()
    later[:, 3] = 9  # a later word reaches the ITC text, not the earlier ITG words, not the queries
    changed = query_and_text_pass(qformer, branch, golden.queries(), embeds, later, mask)
    assert torch.equal(changed.query_output, out.query_output)
    assert torch.equal(changed.itg_hidden[:, :3], out.itg_hidden[:, :3])
    assert not torch.allclose(changed.text_cls, out.text_cls)
    assert not torch.allclose(changed.itg_hidden[:, 3], out.itg_hidden[:, 3])
    other = query_and_text_pass(qformer, branch, golden.queries() + 1, embeds, ids, mask)
    assert torch.equal(other.text_cls, out.text_cls)  # the ITC text sees no queries
    assert not torch.allclose(other.itg_hidden, out.itg_hidden)  # the ITG text does


def test_gradients_reach_lora_and_queries_alike_in_one_pass_or_three(golden: Golden) -> None:
    """The one pass and separate passes give the same gradients of LoRA and queries; also runs under autocast."""
    data = golden.data
    embeds, ids, mask = data["image_embeds"], data["input_ids"], data["attention_mask"]
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    qformer, branch = golden.build()
    peft = get_peft_model(qformer, settings)
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * (4 + 2)  # A and B, query and value, four self- and two cross-attentions

    def gradients(together: bool) -> list[Tensor]:
        queries = golden.queries().clone().requires_grad_()
        out = query_and_text_pass(qformer, branch, queries, embeds, ids, mask)
        query_output = out.query_output if together else query_pass(qformer, queries, embeds)
        text_cls = out.text_cls if together else text_pass(qformer, branch, ids, mask)
        return list(torch.autograd.grad(query_output.square().sum() + text_cls.square().sum(), [queries, *trained]))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    exact = query_and_text_pass(qformer, branch, golden.queries(), embeds, ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = query_and_text_pass(qformer, branch, golden.queries(), embeds, ids, mask)
    for one, other in zip(exact, rounded, strict=True):
        assert F.cosine_similarity(one, other.float(), dim=-1).min() > 0.99


def test_no_pass_makes_the_host_wait(golden: Golden) -> None:
    qformer, branch = golden.build()
    embeds, ids, mask = (golden.data[name] for name in ("image_embeds", "input_ids", "attention_mask"))
    queries = golden.queries().clone().requires_grad_()

    def step() -> None:
        out = query_and_text_pass(qformer, branch, queries, embeds, ids, mask)
        joint = joint_pass(qformer, branch, queries, embeds, ids, mask)
        loss = out.query_output.sum() + branch.logits(out.itg_hidden[:, :-1]).sum() + joint.sum()
        (loss + query_pass(qformer, queries, embeds).sum() + text_pass(qformer, branch, ids, mask).sum()).backward()

    assert host_waits(step) == []
    assert queries.grad.abs().sum() > 0


def test_text_branch_errors_and_one_row(golden: Golden) -> None:
    qformer, branch = golden.build()
    with pytest.raises(ValueError, match="max_text_tokens"):
        branch(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[DEC\]"):
        TextBranch(qformer.config, 131)
    ids = torch.tensor([[1, 5, 6]])
    assert branch.generation_ids(ids).tolist() == [[130, 5, 6]]
    ones = torch.ones_like(ids)
    out = query_and_text_pass(qformer, branch, golden.queries()[:1], golden.data["image_embeds"][:1], ids, ones)
    assert [tuple(t.shape) for t in out] == [(1, 6, 48), (1, 48), (1, 3, 48)]
    names = set(branch.state_dict())
    assert not any("decoder" in name for name in names)  # tied by construction: one tensor, so safetensors can store it
    assert len({t.data_ptr() for t in branch.state_dict().values()}) == len(names)


def test_pafe_and_box_head() -> None:
    assert sum(p.numel() for p in PaFE(4, 768).parameters()) == 99_712
    assert sum(p.numel() for p in PaFE(6, 768).parameters()) == 99_968
    assert sum(p.numel() for p in BoxHead(768, 6).parameters()) == 4_614
    boxes = torch.rand(3, 6)
    assert torch.equal(PaFE(6, 16, init="zero")(boxes), torch.zeros(3, 1, 16))
    pafe, head = PaFE(6, 16), BoxHead(16, 6)
    exact = pafe(boxes)
    assert exact.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pafe(boxes), exact)  # full precision under autocast
        predicted = head(torch.randn(3, 5, 16) + exact)
    assert predicted.shape == (3, 6)
    assert predicted.dtype == torch.float32
    predicted.sum().backward()
    assert pafe.fc1.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"init\.pafe"):
        PaFE(4, 16, init="ones")
