"""Samplers for mmengine's loaders."""

from collections.abc import Sized

from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from timm.data.distributed_sampler import RepeatAugSampler as TimmRepeatAugSampler


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
