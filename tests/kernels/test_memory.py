"""Memory of large results: that it is used again, and by one tensor at a time."""

import copy
import pickle

import pytest
import torch

from visattn.kernels import _memory
from visattn.kernels._memory import LARGE, empty, empty_like, without_reuse

COUNT = LARGE // 4


@pytest.fixture(autouse=True)
def nothing_idle(monkeypatch):
    monkeypatch.setattr(_memory, "_idle", _memory._Idle())


def test_memory_of_a_tensor_that_is_gone_is_used_again():
    first = empty(COUNT)
    place = first.data_ptr()
    assert empty(COUNT).data_ptr() != place
    view = first[:2]
    del first
    assert empty(COUNT).data_ptr() != place
    del view
    assert place in (empty(COUNT).data_ptr(), empty(COUNT).data_ptr())


def test_what_was_used_last_is_used_first():
    first, last = empty(COUNT), empty(COUNT)
    place = last.data_ptr()
    del first
    del last
    assert empty(COUNT).data_ptr() == place


def test_a_block_much_too_large_is_left_for_others():
    place = empty(16 * COUNT).data_ptr()
    assert empty(COUNT).data_ptr() != place
    assert empty(15 * COUNT).data_ptr() == place


def test_what_is_idle_has_a_bound(monkeypatch):
    monkeypatch.setattr(_memory, "MOST_IDLE", 3 * _memory.HUGE_PAGE)
    tensors = [empty(COUNT) for _ in range(5)]
    del tensors
    assert sum(block.size for block in _memory._idle.blocks) == 3 * _memory.HUGE_PAGE


def test_small_results_and_records_are_of_pytorch():
    def blocks(count):
        del count[:]
        return len(_memory._idle.blocks)

    assert blocks([empty(COUNT - 1)]) == 0
    with without_reuse():
        assert blocks([empty(COUNT)]) == 0
    assert blocks([empty(COUNT)]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_looks_like_torchs(dtype, layout):
    shape = (2, 64, 100, 120)
    wanted = torch.empty(shape, dtype=dtype, memory_format=layout)
    for x in (empty(*shape, dtype=dtype, memory_format=layout), empty_like(wanted)):
        assert (x.shape, x.stride(), x.dtype) == (wanted.shape, wanted.stride(), dtype)
        assert x.fill_(1).sum() == x.numel()


def test_uninitialised_memory_can_be_filled():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert empty(COUNT).isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)


def test_can_be_copied_pickled_and_shared():
    x = empty(COUNT).fill_(3)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.share_memory_()):
        assert other.eq(3).all()
    assert x.is_shared()
