"""The order in which a training takes its samples, where mmengine has none of the kind."""

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..engine.config import ConfigError

__all__ = ["RepeatSampler"]


@DATA_SAMPLERS.register_module()
class RepeatSampler(Sampler):
    """Take every sample several times, in an epoch that is no longer than without: repeated augmentation.

    The repetitions of a sample go to different processes where there are several, hence into different steps or
    batches of one step (arXiv 1902.05509, and DeiT, arXiv 2012.12877). An epoch takes one part in ``repeats`` of the
    samples, another part each time; its length is rounded down to a multiple of 256 for all processes together.

    Args:
        dataset: Any with a length.
        repeats: How often a sample is taken.
        seed: None: one on which the processes agree.

    Raises:
        ConfigError: ``repeats`` is below 1.
    """

    def __init__(self, dataset: Sized, repeats: int = 3, seed: int | None = None):
        if repeats < 1:
            raise ConfigError(f"RepeatSampler's repeats is 1 or more, not {repeats}.")
        self.rank, self.world_size = get_dist_info()
        self.samples = len(dataset)
        self.repeats = repeats
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole = self.samples // 256 * 256 or self.samples
        return whole // self.world_size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.samples)
        mine = np.arange(self.rank, len(self) * self.world_size, self.world_size)
        yield from order[mine // self.repeats].tolist()
