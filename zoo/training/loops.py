"""Training loops that resume inside an epoch as if they had never stopped.

All randomness of a step is a function of the seed and of where the step is: the order of the images
of seed and epoch; the augmentation of an image of its place in the epoch; and what the model draws
(mixing, dropout, stochastic depth) of the iteration. So nothing has to be saved to resume, and the
number of loader processes does not matter.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ..errors import DataError


def seed_all(*entropy: int) -> None:
    """Seeds Python's, NumPy's and torch's generators from several whole numbers."""
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))


class SeededDataset(Dataset):
    """Gives (index, seeds) pairs their sample, having seeded all generators.

    Args:
        dataset: Data set whose attributes remain reachable, also to set them. One that says
            ``is_random = False`` needs no seeds, which take longer than to read features.
    """

    __getitems__ = None

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks exchange pipelines.
        if name == "dataset":
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, tuple[int, ...]]) -> Any:
        index, seeds = key
        if getattr(self.dataset, "is_random", True):
            seed_all(*seeds)
        return self.dataset[index]


class ResumableBatchSampler(Sampler):
    """Batches of (index, seeds) pairs, from a given batch of the epoch on.

    Args:
        batch_sampler: Gives the batches of indices of a whole epoch.
    """

    def __init__(self, batch_sampler: BatchSampler):
        self.batch_sampler = batch_sampler
        self.seed = self.epoch = self.first = 0

    @property
    def sampler(self) -> Sampler:
        """The sampler of indices."""
        return self.batch_sampler.sampler

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self.batch_sampler.batch_size

    def start(self, seed: int, epoch: int, first: int) -> None:
        """Sets where the next iteration over this begins.

        Args:
            seed: Seed of the run.
            epoch: Epoch.
            first: First batch of the epoch; those before it are passed over unread.
        """
        self.seed, self.epoch, self.first = seed, epoch, first
        if hasattr(self.sampler, "seed"):
            self.sampler.seed = seed
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        rank = get_rank()
        for number, batch in enumerate(self.batch_sampler):
            if number >= self.first:
                yield [
                    (index, (self.seed, rank, self.epoch, number, place))
                    for place, index in enumerate(batch)
                ]


def make_resumable(loader: DataLoader) -> DataLoader:
    """A loader of the same batches whose batch sampler is a ``ResumableBatchSampler``.

    Raises:
        DataError: If it has no batch.
    """
    if len(loader) == 0:
        raise DataError(
            f"{len(loader.dataset)} images make no batch of {loader.batch_size}: lower "
            "train_dataloader.batch_size or set train_dataloader.drop_last=False"
        )
    workers = {}
    if loader.num_workers:
        workers = {
            "persistent_workers": loader.persistent_workers,
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
            "timeout": loader.timeout,
        }
    return DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=ResumableBatchSampler(loader.batch_sampler),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        **workers,
    )


def check_epoch_length(runner: Any, length: int) -> None:
    """Raises where a resumed run had epochs of another length, in iterations; notes the length.

    Raises:
        DataError: If it had.
    """
    hub = runner.message_hub
    before = hub.runtime_info.get("epoch_length", length)
    if before != length:
        raise DataError(
            f"the run to resume had {before} iterations an epoch, this one has {length}: use the "
            "same images, batch size and number of processes, or start a new run from its weights "
            "with --cfg-options load_from=CHECKPOINT"
        )
    hub.update_info("epoch_length", length)


@LOOPS.register_module()
class ResumableEpochTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based loop, resuming at the right batch of an epoch.

    Args:
        runner: Runner.
        dataloader: Loader or its configuration.
        **kwargs: Of mmengine's loop, such as ``max_epochs``.
    """

    def __init__(self, runner: Any, dataloader: DataLoader | dict[str, Any], **kwargs: Any):
        super().__init__(runner, dataloader, **kwargs)
        self.dataloader = make_resumable(self.dataloader)

    def run(self) -> torch.nn.Module:
        """Trains from where the runner is to the last epoch."""
        check_epoch_length(self.runner, len(self.dataloader))
        return super().run()

    def run_epoch(self) -> None:
        """Trains for what is left of the epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.batch_sampler.start(self.runner.seed, self._epoch, first)
        for index, batch in enumerate(self.dataloader, first):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict[str, Any]) -> None:
        """Trains on one batch."""
        seed_all(self.runner.seed, get_rank(), self._iter)
        super().run_iter(idx, data_batch)


class ResumableBatches(Iterator):
    """Batches of one epoch after another, from any of them on.

    Args:
        loader: Loader.
        seed: Seed of the run.
    """

    def __init__(self, loader: DataLoader, seed: int):
        self.loader = make_resumable(loader)
        self.seed = seed
        self.position = 0
        self._batches: Iterator[Any] | None = None

    @property
    def epoch_length(self) -> int | None:
        """Batches of an epoch; None where the sampler never ends one."""
        sampler = self.loader.batch_sampler.sampler
        return None if isinstance(sampler, InfiniteSampler) else len(self.loader)

    def skip_iter(self, count: int) -> None:
        """Passes over the next batches, unread."""
        self.position += count
        self._batches = None

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches, None)
        if batch is None:
            batch = next(self._start())
        self.position += 1
        return batch

    def _start(self) -> Iterator[Any]:
        epoch, first = divmod(self.position, self.epoch_length or self.position + 1)
        self.loader.batch_sampler.start(self.seed, epoch, first)
        self._batches = iter(self.loader)
        return self._batches


@LOOPS.register_module()
class ResumableIterTrainLoop(IterBasedTrainLoop):
    """mmengine's iteration-based loop, resuming at the right batch without reading those before.

    Args:
        runner: Runner.
        dataloader: Loader or its configuration.
        **kwargs: Of mmengine's loop, such as ``max_iters``; ``fast_forward_on_resume`` is not
            needed: nothing is read that was trained on.
    """

    def __init__(self, runner: Any, dataloader: DataLoader | dict[str, Any], **kwargs: Any):
        super().__init__(runner, dataloader, **kwargs)
        self.dataloader_iterator = ResumableBatches(self.dataloader, runner.seed)
        self.dataloader = self.dataloader_iterator.loader

    def run(self) -> torch.nn.Module:
        """Trains from where the runner is to the last iteration."""
        if self.dataloader_iterator.epoch_length is not None:
            check_epoch_length(self.runner, self.dataloader_iterator.epoch_length)
        return super().run()

    def run_iter(self, data_batch: dict[str, Any]) -> None:
        """Trains on one batch."""
        seed_all(self.runner.seed, get_rank(), self._iter)
        super().run_iter(data_batch)
