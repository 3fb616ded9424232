"""Batches of identities."""

from types import SimpleNamespace

import numpy as np
import pytest

from visattn.zoo.data import samplers
from visattn.zoo.data.samplers import IdentitySampler
from visattn.zoo.errors import ConfigError, DataError

# Very uneven: one identity has more images than all epochs can take, others fewer than K.
COUNTS = [200, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 30]


@pytest.fixture
def dataset():
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    np.random.default_rng(0).shuffle(labels)
    return SimpleNamespace(labels=labels)


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return np.array(indices).reshape(-1, sampler.per_process, sampler.num_instances)


def in_processes(monkeypatch, dataset, count, **kwargs):
    made = []
    for rank in range(count):
        monkeypatch.setattr(samplers, "get_dist_info", lambda rank=rank: (rank, count))
        made.append(IdentitySampler(dataset, seed=3, **kwargs))
    return made


@pytest.mark.parametrize(("identities", "instances"), [(4, 4), (2, 1), (12, 2), (3, 5)])
def test_batches_are_of_different_identities_with_as_many_images(dataset, identities, instances):
    for epoch in range(3):
        found = batches(IdentitySampler(dataset, identities, instances, seed=1), epoch)
        owners = dataset.labels[found]  # (batches, identities, instances)
        assert (owners == owners[..., :1]).all()
        assert all(len(set(batch)) == identities for batch in owners[..., 0].tolist())


def test_images_repeat_only_where_there_are_too_few(dataset):
    found = batches(IdentitySampler(dataset, 4, 4, seed=1))
    for group in found.reshape(-1, 4):
        size = COUNTS[dataset.labels[group[0]]]
        assert len(set(group.tolist())) >= min(size, 4) - (size < 4) * (size - 1)
    counts = np.bincount(found.ravel(), minlength=len(dataset.labels))
    assert counts[np.isin(dataset.labels, np.flatnonzero(np.array(COUNTS) >= 4))].max() == 1


def test_there_are_as_many_batches_as_can_be(dataset):
    """By trying: an identity gives at most one group to each batch."""
    groups = np.array([max(count // 4, 1) for count in COUNTS])
    best = max(n for n in range(1, 100) if np.minimum(groups, n).sum() >= 4 * n)
    assert IdentitySampler(dataset, 4, 4, seed=0).num_batches == best


def test_epochs_differ_and_seeds_determine_them(dataset):
    sampler = IdentitySampler(dataset, 4, 4, seed=1)
    first, second = batches(sampler, 0), batches(sampler, 1)
    assert first.shape == second.shape and (first != second).any()
    np.testing.assert_array_equal(batches(IdentitySampler(dataset, 4, 4, seed=1), 1), second)
    assert (batches(IdentitySampler(dataset, 4, 4, seed=2), 1) != second).any()


def test_every_image_has_its_turn(dataset):
    sampler = IdentitySampler(dataset, 4, 4, seed=1)
    seen = np.unique(np.concatenate([batches(sampler, e).ravel() for e in range(60)]))
    assert len(seen) == len(dataset.labels)


def test_processes_have_as_many_batches_of_other_identities(dataset, monkeypatch):
    made = in_processes(monkeypatch, dataset, 3, num_identities=2, num_instances=4)
    assert len({len(sampler) for sampler in made}) == 1
    found = np.stack([batches(sampler, 5) for sampler in made])
    for step in range(found.shape[1]):
        owners = dataset.labels[found[:, step, :, 0]].ravel().tolist()
        assert len(set(owners)) == 6


def test_smaller_batches_of_the_loader_are_of_different_identities(dataset):
    halves = batches(IdentitySampler(dataset, 8, 2, seed=1)).reshape(-1, 4, 2)
    for half in dataset.labels[halves][..., 0].tolist():
        assert len(set(half)) == 4


def test_impossible_batches_are_named(dataset, monkeypatch):
    with pytest.raises(DataError, match="12 identities make no batch of 16"):
        IdentitySampler(dataset)
    with pytest.raises(DataError, match="batch of 14 .7 in each of 2 processes"):
        in_processes(monkeypatch, dataset, 2, num_identities=7)
    with pytest.raises(ConfigError, match="must be positive"):
        IdentitySampler(dataset, num_instances=0)
