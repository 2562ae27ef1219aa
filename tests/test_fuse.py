"""Gradient fusion in closed form: its laws, on layers and on whole networks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mudi_core.lora.fuse import Errors, Factors, Fusion, Inputs, balanced, shortened, summed
from mudi_core.lora.fuse_rows import gathered

WIDTH, OUT, RANK = 48, 40, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(seed: int, rank: int = RANK) -> Factors:
    return random(OUT, rank, seed=seed), random(rank, WIDTH, seed=seed + 100)


def rows(seed: int, count: int = 400) -> Tensor:
    """A part that all concepts share and a part of the concept's own, as features have."""
    shared, own = random(8, WIDTH, seed=1000), random(6, WIDTH, seed=2000 + seed)
    noise = 0.3 * random(count, WIDTH, seed=3000 + seed)
    return random(count, 8, seed=4000 + seed) @ shared + random(count, 6, seed=5000 + seed) @ own + noise


def inputs(*batches: Tensor) -> Inputs:
    found = Inputs(batches[0].shape[1])
    for batch in batches:
        found.add(batch)
    return found


def dense(factors: Factors) -> Tensor:
    return factors[0].double() @ factors[1].double()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("count", [5, 400], ids=["fewer inputs than values", "many inputs"])
def test_it_is_the_optimum_that_the_official_solver_finds(count: int) -> None:
    """Mix-of-Show's code: LBFGS from no change on the stacked data; with few inputs it finds the least change."""
    changes, seen = [change(i) for i in range(3)], [rows(i, count) for i in range(3)]
    found = Fusion([inputs(one) for one in seen], ridge=0.0).fuse(changes)
    assert found is not None
    stacked = torch.cat(seen).double()
    wanted = torch.cat([one.double() @ dense(own).T for one, own in zip(seen, changes, strict=True)])
    weight = torch.zeros(OUT, WIDTH, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight], max_iter=3000, history_size=25, line_search_fn="strong_wolfe", tolerance_grad=1e-14,
        tolerance_change=1e-16,
    )  # fmt: skip

    def loss() -> Tensor:
        solver.zero_grad()
        missed = nn.functional.mse_loss(stacked @ weight.T, wanted)
        missed.backward()
        return missed

    solver.step(loss)
    assert relative(dense(found), weight.detach()) < 1e-4
    assert found[0].shape[1] == 3 * RANK


def test_both_forms_are_the_same_solution() -> None:
    changes, seen = [change(i) for i in range(2)], [rows(i, 10) for i in range(2)]
    few = Fusion([inputs(one) for one in seen], ridge=1e-3)
    many = [inputs(one.repeat(6, 1)) for one in seen]  # the same Gram matrices, from more inputs than values
    assert few.inputs[0].rows is not None and many[0].rows is None
    first, second = few.fuse(changes), Fusion(many, ridge=1e-3).fuse(changes)
    assert first is not None and second is not None and relative(dense(first), dense(second)) < 1e-3


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_neither_batches_nor_the_order_of_concepts_matter(order: tuple[int, ...]) -> None:
    changes, seen = [change(i) for i in range(3)], [rows(i) for i in range(3)]
    whole = Fusion([inputs(one) for one in seen]).fuse(changes)
    other = Fusion([inputs(*seen[i].split(70)) for i in order]).fuse([changes[i] for i in order])
    assert whole is not None and other is not None and relative(dense(other), dense(whole)) < 1e-4


def test_one_concept_gives_its_own_lora_back() -> None:
    own = change(0)
    found = Fusion([inputs(rows(0))], ridge=0.0).fuse([own])
    assert found is not None and relative(dense(found), dense(own)) < 1e-5


def test_identical_concepts_give_the_same_lora() -> None:
    own = change(0)
    found = Fusion([inputs(rows(0)), inputs(rows(1))], ridge=0.0).fuse([own, own])
    assert found is not None and relative(dense(found), dense(own)) < 1e-5


def test_on_orthogonal_inputs_every_concept_is_exact() -> None:
    basis = torch.linalg.qr(random(WIDTH, WIDTH, seed=7))[0]
    seen = [random(200, WIDTH // 2, seed=i) @ half for i, half in enumerate(basis.split(WIDTH // 2))]
    changes, each = [change(0), change(1)], [inputs(one) for one in seen]
    found = Fusion(each, ridge=0.0).fuse(changes)
    assert found is not None
    assert max(Errors.of(found, changes, each).relative) < 1e-3  # of squares in float32
    assert min(Errors.of(summed(changes), changes, each).relative) > 0.3
    for one, own in zip(seen, changes, strict=True):
        assert relative(one.double() @ dense(found).T, one.double() @ dense(own).T) < 1e-5


def test_it_is_nearer_than_the_sum_to_every_concept() -> None:
    changes, each = [change(i) for i in range(3)], [inputs(rows(i)) for i in range(3)]
    found = Fusion(each).fuse(changes)
    assert found is not None
    ours, theirs = Errors.of(found, changes, each).relative, Errors.of(summed(changes), changes, each).relative
    assert all(a < 0.7 * b for a, b in zip(ours, theirs, strict=True))


def test_errors_are_lengths_of_answers() -> None:
    changes, seen = [change(0), change(1)], [rows(0), rows(1)]
    for each in ([inputs(one) for one in seen], [inputs(one[:20]) for one in seen]):
        errors = Errors.of(summed(changes), changes, each)
        for i, found in enumerate(errors.relative):
            x = seen[i][: each[i].count].double()
            missed = (x @ (dense(changes[1 - i])).T).norm() / (x @ dense(changes[i]).T).norm()
            assert found == pytest.approx(float(missed), rel=1e-4)
    assert (errors + errors).relative == pytest.approx(errors.relative)


def test_a_concept_that_changes_nothing_keeps_its_answers() -> None:
    """Its inputs count: where it stands, the others' changes should do little."""
    own, each = change(0), [inputs(rows(0)), inputs(rows(1))]
    alone, beside = Fusion(each[:1]).fuse([own]), Fusion(each).fuse([own, None])
    assert alone is not None and beside is not None
    assert each[1].strength(beside) < 0.7 * each[1].strength(alone)
    assert Fusion(each).fuse([None, None]) is None


@pytest.mark.parametrize("count", [5, 400], ids=["fewer inputs than values", "many inputs"])
def test_compressing_is_best_for_the_inputs(count: int) -> None:
    changes, each = [change(i) for i in range(3)], [inputs(rows(i, count)) for i in range(3)]
    fusion = Fusion(each)
    found = fusion.fuse(changes)
    assert found is not None

    def missed(short: Factors) -> float:
        gap = summed([found, (-short[0], short[1])])
        return sum(one.strength(gap) for one in each)

    errors = [missed(fusion.compressed(found, rank)) for rank in (2, 4, 8, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12 * each[0].strength(found)
    for rank in (2, 4, 8):
        short = fusion.compressed(found, rank)
        assert short[0].shape[1] == rank and missed(short) <= missed(shortened(found, rank)) * (1 + 1e-6)


def test_the_sum_is_the_sum() -> None:
    changes = [change(0), None, change(1, rank=2)]
    assert relative(dense(summed(changes)), dense(change(0)) + dense(change(1, rank=2))) < 1e-6
    assert summed(changes)[0].shape[1] == RANK + 2


def test_balancing_changes_nothing_but_the_lengths() -> None:
    up, down = change(0)
    up, down = up * torch.tensor([1e6, 1.0, 0.0, 1e-6]), down.clone()
    even = balanced((up.double(), down.double()))
    assert relative(dense(even), dense((up, down))) < 1e-6
    torch.testing.assert_close(even[0].norm(dim=0)[[0, 1, 3]], even[1].norm(dim=1)[[0, 1, 3]])


# ------------------------------------------------------------------------------------------------ gathering


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        normed = x / 2
        answer: Tensor = self.out(self.q(normed) + self.k(normed))
        return answer


def test_layers_that_read_the_same_share_their_inputs() -> None:
    net, x = Attention(), random(2, 30, 8, seed=0)
    with gathered(dict(net.named_children())) as heard, torch.no_grad():
        net(x)
        net(x + 1)
    assert heard.of("q") is heard.of("k") is not heard.of("out")
    found = heard.of("q")
    assert found is not None and found.count == 120 and heard.leader("k") == "q"
    both = torch.cat([x, x + 1]).reshape(-1, 8) / 2
    torch.testing.assert_close(found.gram(), (both.T @ both / 120).double(), rtol=1e-5, atol=1e-5)
    net(x)
    assert found.count == 120 and not net.q._forward_pre_hooks
    assert heard.of("other") is None


def test_so_many_rows_of_each_call_are_drawn_by_the_seed() -> None:
    net, x = Attention(), random(2, 30, 8, seed=0)
    grams = []
    for seed in (1, 1, 2):
        with gathered({"q": net.q}, per_call=10, seed=seed) as heard, torch.no_grad():
            net(x)
            net(x)
        found = heard.of("q")
        assert found is not None and found.count == 20
        grams.append(found.gram())
    assert torch.equal(grams[0], grams[1]) and not torch.equal(grams[0], grams[2])
