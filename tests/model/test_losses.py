"""The losses against brute-force loops, over one and two ranks, with duplicates and padding, and without host waits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rb.model.losses import (
    box_regression_loss,
    choose_negatives,
    duplicate_mask,
    itc_loss,
    itm_loss,
    itm_row_weights,
    own_column,
    similarities,
    token_loss,
    with_gradients,
)
from tests.support.host_waits import host_waits

TEMPERATURE = torch.tensor([0.07])


def features(rows: int, queries: int = 3, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        F.normalize(torch.randn(rows, queries, width, generator=generator), dim=-1),
        F.normalize(torch.randn(rows, width, generator=generator), dim=-1),
    )


def brute_force_itc(queries: Tensor, texts: Tensor, exclude: Tensor, smoothing: float) -> float:
    """All rows of the whole batch, one number at a time."""
    total, size = 0.0, len(texts)
    for direction in ("i2t", "t2i"):
        for row in range(size):
            sims = {}
            for column in range(size):
                if exclude[row, column]:
                    continue
                image, text = (row, column) if direction == "i2t" else (column, row)
                sims[column] = max(float(q @ texts[text]) for q in queries[image]) / 0.07
            log_sum = math.log(sum(math.exp(s) for s in sims.values()))
            smooth = sum(log_sum - s for s in sims.values()) / len(sims)
            total += (1 - smoothing) * (log_sum - sims[row]) + smoothing * smooth
    return total / (2 * size)


def keys(*values: int) -> Tensor:
    return torch.tensor(values)


def test_itc_equals_cross_entropy_when_nothing_is_excluded() -> None:
    queries, texts = features(6)
    sim_i2t, sim_t2i = similarities(queries, texts, queries, texts, TEMPERATURE)
    loss = itc_loss(sim_i2t, sim_t2i, 0, None)
    target = torch.arange(6)
    expected = (
        F.cross_entropy(sim_i2t, target, label_smoothing=0.1) + F.cross_entropy(sim_t2i, target, label_smoothing=0.1)
    ) / 2
    torch.testing.assert_close(loss, expected)
    assert float(loss) == pytest.approx(
        brute_force_itc(queries, texts, torch.zeros(6, 6, dtype=torch.bool), 0.1), rel=1e-5
    )
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    assert torch.equal(itc_loss(sim_i2t, sim_t2i, 0, nothing), loss)


def test_itc_leaves_duplicates_out() -> None:
    queries, texts = features(5, seed=1)
    both = torch.stack([keys(1, 2, 1, 3, 4), keys(10, 11, 12, 11, 13)], dim=1)  # objects, captions
    exclude = duplicate_mask(both, both, 0)
    assert {tuple(pair) for pair in exclude.nonzero().tolist()} == {(0, 2), (2, 0), (1, 3), (3, 1)}
    sim, sim_t2i = similarities(queries, texts, queries, texts, TEMPERATURE)
    loss = itc_loss(sim, sim_t2i, 0, exclude, 0.1)
    assert float(loss) == pytest.approx(brute_force_itc(queries, texts, exclude, 0.1), rel=1e-5)
    assert sim.isfinite().all()  # similarities come back unmasked
    gradient_of = texts.clone().requires_grad_()
    first_row = itc_loss(*similarities(queries[:1], texts[:1], queries, gradient_of, TEMPERATURE), 0, exclude[:1])
    first_row.backward()
    assert gradient_of.grad[2].abs().sum() == 0  # text 2 shows the object of row 0


def test_itc_with_everything_excluded_or_one_row_is_zero() -> None:
    queries, texts = (t.requires_grad_() for t in features(4))
    sims = similarities(queries, texts, queries, texts, TEMPERATURE)
    loss = itc_loss(*sims, 0, torch.ones(4, 4, dtype=torch.bool))
    loss.backward()  # only the own column is left: nothing to learn, nothing infinite
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert queries.grad.isfinite().all()
    queries, texts = features(1)
    sim_i2t, sim_t2i = similarities(queries, texts, queries, texts, TEMPERATURE)
    loss = itc_loss(sim_i2t, sim_t2i, 0, None)
    assert (tuple(sim_i2t.shape), tuple(sim_t2i.shape)) == ((1, 1), (1, 1))
    assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_itc_mean_over_ranks_is_the_global_loss_with_its_gradients(ranks: int) -> None:
    size = 6 // ranks
    both = torch.stack([keys(1, 2, 1, 3, 4, 2), keys(10, 11, 12, 11, 13, 14)], dim=1)  # objects, captions

    def run(parts: list[slice]) -> tuple[float, list[Tensor]]:
        queries, texts = (t.requires_grad_() for t in features(6))
        temperature = TEMPERATURE.clone().requires_grad_()
        losses = []
        for part in parts:
            exclude = duplicate_mask(both[part], both, part.start)
            sims = similarities(queries[part], texts[part], queries, texts, temperature)
            losses.append(itc_loss(*sims, part.start, exclude, 0.1))
        torch.stack(losses).mean().backward()
        return sum(loss.item() for loss in losses) / len(losses), [queries.grad, texts.grad, temperature.grad]

    one, one_gradients = run([slice(0, 6)])
    many, many_gradients = run([slice(rank * size, (rank + 1) * size) for rank in range(ranks)])
    assert many == pytest.approx(one, rel=1e-5)
    for a, b in zip(one_gradients, many_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_itc_is_full_precision_under_autocast() -> None:
    queries, texts = features(6)
    sims = similarities(queries, texts, queries, texts, TEMPERATURE)
    exact = itc_loss(*sims, 0, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = similarities(queries, texts, queries, texts, TEMPERATURE)
        assert all(torch.equal(a, b) for a, b in zip(lower, sims, strict=True))
        assert torch.equal(itc_loss(*lower, 0, None), exact)


def test_negatives_equal_a_loop_and_are_never_forbidden() -> None:
    generator = torch.Generator().manual_seed(2)
    sim = torch.randn(50, 9, generator=generator) * 4
    forbidden = torch.rand(50, 9, generator=generator) < 0.5
    forbidden[7] = True
    uniforms = torch.rand(50, generator=generator)
    columns, valid = choose_negatives(sim, forbidden, uniforms)
    for row in range(50):
        if forbidden[row].all():
            assert valid[row] == 0
            assert 0 <= columns[row] < 9
            continue
        assert valid[row] == 1
        weights = [0.0 if f else math.exp(float(s)) for s, f in zip(sim[row], forbidden[row], strict=True)]
        threshold, passed = float(uniforms[row]) * sum(weights), 0.0
        expected = -1
        while passed <= threshold:
            expected += 1
            passed += weights[expected]
        assert columns[row] == expected
        assert not forbidden[row, columns[row]]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24, 1.0])
def test_negatives_at_the_ends_of_the_interval(uniform: float) -> None:
    sim = torch.tensor([[50.0, -50.0, 0.0, 90.0]])
    columns, valid = choose_negatives(sim, torch.tensor([[True, False, False, True]]), torch.tensor([uniform]))
    assert valid.tolist() == [1]
    assert columns.tolist() in ([[1], [2]] if uniform == 0 else [[2]])


def test_negatives_follow_the_probabilities() -> None:
    sim = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(4000, 4)
    forbidden = torch.tensor([False, False, False, True]).expand(4000, 4)
    uniforms = (torch.arange(4000) + 0.5) / 4000
    counts = Counter(choose_negatives(sim, forbidden, uniforms)[0].tolist())
    expected = sim[0, :3].softmax(0) * 4000
    for column in range(3):
        assert abs(counts[column] - float(expected[column])) <= 1
    assert counts[3] == 0


def test_one_row_has_no_negative() -> None:
    sim = torch.zeros(1, 1)
    columns, valid = choose_negatives(sim, own_column(sim, 0), torch.tensor([0.3]))
    assert (columns.tolist(), valid.tolist()) == ([0], [0.0])
    weights = itm_row_weights(valid, valid)
    assert weights.tolist() == [1, 0, 0]
    logits = torch.tensor([[0.0, 1.0], [9.0, -9.0], [-9.0, 9.0]])
    expected = F.cross_entropy(logits[:1], torch.tensor([1]))
    torch.testing.assert_close(itm_loss(logits, weights, weights.sum(), 1), expected)


def test_duplicates_never_cover_the_own_column() -> None:
    everything = keys(5, 5, 5, 5)[:, None]
    for offset, rows in ((0, 4), (2, 2), (3, 1)):
        exclude = duplicate_mask(everything[offset : offset + rows], everything, offset)
        assert exclude.shape == (rows, 4)
        own = own_column(exclude, offset)
        assert own.int().argmax(1).tolist() == list(range(offset, offset + rows))
        assert torch.equal(exclude, ~own)
    columns = torch.stack([keys(9, 8, 1, 2), keys(7, 6, 3, 4)], dim=1)
    assert not duplicate_mask(columns[2:], columns, 2).any()


def test_itm_is_the_plain_mean_with_class_one_for_matches() -> None:
    logits = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    weights = itm_row_weights(torch.ones(4), torch.ones(4))
    expected = F.cross_entropy(logits, torch.tensor([1] * 4 + [0] * 8))
    torch.testing.assert_close(itm_loss(logits, weights, weights.sum(), 1), expected)


def test_itm_mean_over_ranks_counts_only_valid_rows() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 9, 2, generator=generator)  # two ranks, B = 3
    image_valid = torch.tensor([[1.0, 0, 1], [1, 1, 1]])
    text_valid = torch.tensor([[0.0, 0, 1], [1, 1, 0]])
    weights = [itm_row_weights(image_valid[r], text_valid[r]) for r in range(2)]
    total = weights[0].sum() + weights[1].sum()
    ours = sum(itm_loss(logits[r], weights[r], total, 2) for r in range(2)) / 2
    summed, count = 0.0, 0
    for rank in range(2):
        for row in range(9):
            if weights[rank][row] > 0:
                label = torch.tensor(1 if row < 3 else 0)
                summed, count = summed + float(F.cross_entropy(logits[rank, row], label)), count + 1
    assert float(ours) == pytest.approx(summed / count, rel=1e-5)


def test_token_loss_is_the_mean_over_all_tokens_of_all_ranks() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 5, 11, generator=generator)  # two ranks, B = 3, T = 5
    labels = torch.randint(0, 11, (2, 3, 5), generator=generator)
    weights = torch.ones(2, 3, 5)
    weights[0, 1, 2:], weights[0, 2, 1:], weights[1, 0, 4:] = 0, 0, 0  # unequal counts: 9 and 14
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(
            logits.flatten(0, -2),
            labels.masked_fill(weights == 0, -100).flatten(),
            label_smoothing=smoothing,
        )
        one = token_loss(logits, labels, weights, weights.sum(), 1, smoothing)
        torch.testing.assert_close(one, expected)
        two = sum(token_loss(logits[r], labels[r], weights[r], weights.sum(), 2, smoothing) for r in range(2)) / 2
        torch.testing.assert_close(two, expected)
    naive = sum(token_loss(logits[r], labels[r], weights[r], weights[r].sum(), 1) for r in range(2)) / 2
    assert not torch.allclose(naive, token_loss(logits, labels, weights, weights.sum(), 1))


def test_token_loss_without_tokens_is_zero() -> None:
    logits = torch.randn(1, 4, 7, requires_grad=True)
    weights = torch.zeros(1, 4)
    loss = token_loss(logits.bfloat16(), torch.zeros(1, 4, dtype=torch.long), weights, weights.sum(), 1, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert logits.grad.abs().sum() == 0


def test_box_loss_is_the_mean_absolute_error() -> None:
    loss = box_regression_loss(torch.tensor([[0.0, 0.5, 1.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5, 1.0]]))
    assert float(loss) == pytest.approx(0.25)


def test_no_loss_makes_the_host_wait() -> None:
    x = torch.arange(4.0)
    assert host_waits(lambda: x.sum().item()) == ["aten::_local_scalar_dense"]  # the detector detects
    assert host_waits(lambda: x[x > 1]) == ["aten::nonzero"]

    queries, texts = (t.requires_grad_() for t in features(6))
    temperature = TEMPERATURE.clone().requires_grad_()
    head = torch.randn(9, 2, requires_grad=True)
    logits = torch.randn(3, 5, 11, requires_grad=True)
    predicted = torch.rand(3, 4, requires_grad=True)
    both = torch.stack([keys(1, 2, 1, 3, 4, 2), keys(10, 11, 12, 11, 13, 14)], dim=1)  # objects, captions
    labels, mask, uniforms, boxes = torch.ones(3, 5).long(), torch.ones(3, 5), torch.rand(3), torch.rand(3, 4)

    def step() -> None:
        exclude = duplicate_mask(both[3:], both, 3)
        sim_i2t, sim_t2i = similarities(queries[3:], texts[3:], queries, texts, temperature)
        itc = itc_loss(sim_i2t, sim_t2i, 3, exclude)
        forbidden = exclude | own_column(exclude, 3)
        (image, image_valid), (text, text_valid) = (
            choose_negatives(sim_t2i, forbidden, uniforms),
            choose_negatives(sim_i2t, forbidden, uniforms),
        )
        negatives = queries[image].sum() + texts[text].sum()
        weights = itm_row_weights(image_valid, text_valid)
        itm = itm_loss(head, weights, weights.sum(), 1)
        itg = token_loss(logits, labels, mask, mask.sum(), 1, 0.1)
        (itc + itm + itg + box_regression_loss(predicted, boxes) + negatives).backward()

    assert host_waits(step) == []
    assert all(t.grad is not None for t in (temperature, head, logits, predicted, queries, texts))


def test_given_gradients_leave_the_value_alone() -> None:
    """One that is not finite too: else it would look like a loss that is not."""
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = with_gradients(torch.tensor(1.5), (x, y), (torch.tensor([1.0, torch.inf]), torch.tensor([2.0, 3.0])))
    assert loss.item() == 1.5
    (2 * loss).backward()
    assert torch.equal(x.grad, torch.tensor([2.0, torch.inf]))  # type: ignore[arg-type]
    assert torch.equal(y.grad, torch.tensor([4.0, 6.0]))  # type: ignore[arg-type]
