"""Samplers for mmengine's loaders."""

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from timm.data.distributed_sampler import RepeatAugSampler as TimmRepeatAugSampler
from torch.utils.data import Sampler

from ..errors import ConfigError, DataError


@DATA_SAMPLERS.register_module()
class RepeatAugSampler(TimmRepeatAugSampler):
    """Repeated augmentation: each drawn image comes several times, on different processes.

    An epoch still has as many samples as the data set, rounded down to a multiple of
    ``selected_round``, so it sees about ``1 / num_repeats`` of the images.

    Args:
        dataset: Data set.
        seed: Seed of the order, the same in all processes; drawn if None.
        shuffle: Whether to shuffle.
        num_repeats: How often an image is repeated.
        selected_round: Length of an epoch over all processes is rounded down to a multiple of it;
            0 for no rounding.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int | None = None,
        shuffle: bool = True,
        num_repeats: int = 3,
        selected_round: int = 256,
    ):
        rank, world_size = get_dist_info()
        super().__init__(
            dataset,
            num_replicas=world_size,
            rank=rank,
            shuffle=shuffle,
            num_repeats=num_repeats,
            selected_round=selected_round,
        )
        self.seed = sync_random_seed() if seed is None else seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that, with the seed, determines the order."""
        super().set_epoch(self.seed + epoch)


@DATA_SAMPLERS.register_module()
class IdentitySampler(Sampler):
    """Batches of P identities with K images each, for losses of pairs and triplets.

    The images of an identity are shuffled and cut into groups of K at every epoch; what is left of
    them waits for another epoch, and identities of fewer images repeat some. No identity comes
    twice in a batch, over all processes. Those with more groups than there are batches are drawn
    from. All epochs, and all processes, have as many batches.

    Args:
        dataset: Data set with ``labels``.
        num_identities: P, identities in a batch of one process.
        num_instances: K, images of each.
        seed: Seed of the order, the same in all processes; drawn if None.

    Raises:
        DataError: If there are fewer identities than a batch needs.
    """

    def __init__(
        self,
        dataset: Any,
        num_identities: int = 16,
        num_instances: int = 4,
        seed: int | None = None,
    ):
        if num_identities < 1 or num_instances < 1:
            raise ConfigError(
                "num_identities and num_instances must be positive; got "
                f"{num_identities} and {num_instances}"
            )
        self.rank, self.world_size = get_dist_info()
        self.num_instances = num_instances
        self.per_process = num_identities
        labels = np.asarray(dataset.labels)
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order])) + 1
        self._images = np.split(order, starts)
        self._groups = np.array([max(len(i) // num_instances, 1) for i in self._images])
        wanted = num_identities * self.world_size
        if len(self._images) < wanted:
            raise DataError(
                f"{len(self._images)} identities make no batch of {wanted} ({num_identities} in "
                f"each of {self.world_size} processes): lower num_identities"
            )
        self.num_batches = _most_batches(self._groups, wanted)
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that, with the seed, determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * self.per_process * self.num_instances

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        needed = self.num_batches * self.per_process * self.world_size
        counts = np.minimum(self._groups, self.num_batches)
        owners = np.repeat(np.arange(len(counts)), counts)
        counts -= np.bincount(
            rng.choice(owners, len(owners) - needed, replace=False), minlength=len(counts)
        )
        # Dealt out in turn, groups of an identity, which are side by side, come to different
        # batches: there are no more of them than batches.
        dealt = [
            group for i in rng.permutation(len(counts)) for group in self._cut(i, counts[i], rng)
        ]
        for batch in rng.permutation(self.num_batches):
            groups = dealt[batch :: self.num_batches][self.rank :: self.world_size]
            for place in rng.permutation(len(groups)):
                yield from groups[place].tolist()

    def _cut(self, identity: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Some groups of images of an identity."""
        images = rng.permutation(self._images[identity])
        needed = count * self.num_instances
        if len(images) < needed:  # of fewer images than instances
            images = np.concatenate([images, rng.choice(images, needed - len(images))])
        return list(images[:needed].reshape(count, self.num_instances))


def _most_batches(groups: np.ndarray, size: int) -> int:
    """How many batches of ``size`` groups of different identities there are at most."""
    low, high = 1, max(int(groups.sum()) // size, 1)
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * size:
            low = middle
        else:
            high = middle - 1
    return low
