"""Laws of pictures that are kept in bytes: floats to everybody."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from mudi_core.levels import Levels, stacked, to_bytes, unpacked

BYTES = torch.randint(0, 256, (300, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS = BYTES.float() / 255


MADE = {
    "plain": Levels,
    "later": lambda levels: Levels.later(levels.shape, levels.clone),
    "compressed": Levels.compressed,
}


@pytest.fixture(params=[False, True], ids=["grad", "inference"])
def mode(request):
    with torch.inference_mode(request.param):
        yield


@pytest.fixture(params=MADE)
def levels(request, mode):
    return MADE[request.param](BYTES)


@pytest.mark.parametrize(
    "compute",
    [
        lambda t: t * 2,
        lambda t: t.to("cpu", torch.float16),
        lambda t: t.movedim(-1, 0)[None],
        lambda t: torch.cat([t, t], dim=2),
        lambda t: torch.stack([t[0], t[1]]),
        lambda t: functional.interpolate(t.permute(2, 0, 1)[None], (20, 30), mode="bilinear", antialias=True),
        lambda t: t[3:9, 4:, 1],
        lambda t: t[t > 0.5],
        lambda t: t.clone().mul_(2),
        lambda t: torch.from_numpy(255 * t.cpu().numpy()),
        lambda t: torch.from_numpy(np.asarray(t) + 1),
        lambda t: torch.stack(list(t)),
        lambda t: torch.tensor(t.tolist()),
        lambda t: copy.deepcopy(t) + 0,
        lambda t: pickle.loads(pickle.dumps(t)) + 0,
        lambda t: torch.einsum("hwc,hwc->hw", t, t),
        lambda t: torch.zeros(300, 40, 3).copy_(t),
    ],
)
def test_whatever_is_computed_is_what_floats_give(levels, compute):
    result, expected = compute(levels), compute(FLOATS)
    assert result.dtype == expected.dtype and torch.equal(result + 0, expected)


def test_it_is_a_float_tensor_by_its_looks(levels):
    assert isinstance(levels, torch.Tensor) and levels.is_floating_point() and levels.dtype == torch.float32
    assert levels.shape == FLOATS.shape and len(levels) == 300 and levels.ndim == 3 and levels.device.type == "cpu"
    assert levels.numel() * levels.element_size() == FLOATS.numel() * 4 and {levels: 1}[levels] == 1


def test_it_can_be_saved_as_any_tensor(levels):
    file = io.BytesIO()
    torch.save(levels, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), FLOATS)


def test_parts_and_batches_share_the_bytes(mode):
    levels = Levels(BYTES)
    for part in (levels[None], stacked([levels])[0], levels[None][0][2:]):
        assert part.bytes.untyped_storage().data_ptr() == BYTES.untyped_storage().data_ptr()
    both = stacked([levels, levels])
    assert both.bytes.shape == (2, 300, 40, 3) and torch.equal(both[1], levels)
    assert torch.equal(stacked([levels, FLOATS])[0], FLOATS)


@pytest.mark.parametrize("write", [lambda t: t.mul_(0), lambda t: t.__setitem__(slice(None), 0), lambda t: t.zero_()])
def test_what_is_written_stays_and_changes_nothing_else(levels, write):
    other = levels[None]
    write(levels)
    assert levels.bytes is None and float(levels.sum()) == 0 and torch.equal(levels[3:], torch.zeros(297, 40, 3))
    assert torch.equal(other[0], FLOATS) and int(BYTES.sum()) > 0


def test_bytes_come_back_in_memory_of_their_own(levels):
    for values in (levels, FLOATS, FLOATS.double()):
        found = to_bytes(values)
        assert np.array_equal(found, BYTES.numpy())
        found[:] = 0
        assert int(BYTES.sum()) > 0
    assert np.array_equal(to_bytes(levels[5:7, ::2]), BYTES[5:7, ::2].numpy())


@pytest.mark.parametrize("make", [MADE["later"], MADE["compressed"]])
def test_what_is_packed_is_unpacked_when_it_is_used_and_not_kept(make):
    levels = make(BYTES)
    one, other = levels.bytes, levels.bytes
    assert torch.equal(one, BYTES) and one.data_ptr() != other.data_ptr()
    held = unpacked(levels)
    assert held.bytes.data_ptr() == held.bytes.data_ptr() and torch.equal(held, levels)
    assert torch.equal(unpacked(FLOATS), FLOATS)


def test_questions_about_a_packed_picture_unpack_nothing():
    calls = []
    mask = Levels.later((4000, 3000), lambda: calls.append(1) or torch.zeros(4000, 3000, dtype=torch.uint8))
    assert (mask.shape, mask.dtype, mask.device.type, calls) == ((4000, 3000), torch.float32, "cpu", [])
    assert float(mask.max()) == 0 and calls == [1]


def test_gradients_flow_through_what_is_computed_of_it(levels):
    with torch.inference_mode(False):
        weight = torch.ones(3, requires_grad=True)
        (levels * weight).sum().backward()
    torch.testing.assert_close(weight.grad, FLOATS.sum((0, 1)))
