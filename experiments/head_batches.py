"""What a step of training sees: which texts, padded, and what the target says about them, computed or from a disk."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .head_features import Features, FrozenTarget, TargetRows
from .head_files import Advance, nobody, save_whole
from .head_recipe import HeadBatch
from .head_samples import Samples

POOL = 16  # batches whose texts are sorted by length among themselves: less padding, and still random
SHARD = 16  # texts per file of a cache


class Order:
    """Which texts each step sees: a function of the seed and the step's number, every text once per epoch, but for
    some that would not fill a batch.

    Raises:
        ValueError: there are fewer texts than a batch has.

    Example:
        >>> order = Order(torch.tensor([9, 3, 5, 7]), batch_size=2, seed=0)
        >>> order.steps_per_epoch, sorted(order.texts(0) + order.texts(1)), order.texts(2) == order.texts(2)
        (2, [0, 1, 2, 3], True)
    """

    def __init__(self, lengths: Tensor, batch_size: int, seed: int) -> None:  # [texts]
        if len(lengths) < batch_size:
            raise ValueError(
                f"expected at least {batch_size} texts for a batch, got {len(lengths)}; "
                "raise --max-tokens or lower --batch-size"
            )
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch, self._batches = -1, torch.empty(0)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that the texts fill."""
        return len(self._lengths) // self._batch_size

    def texts(self, step: int) -> list[int]:
        """The numbers of a step's texts."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        numbers: list[int] = self._batches[place].tolist()
        return numbers

    def _shuffled(self, epoch: int) -> Tensor:  # [steps, batch_size]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        numbers = torch.randperm(len(self._lengths), generator=generator)[: self.steps_per_epoch * self._batch_size]
        pools = [pool[self._lengths[pool].argsort(stable=True)] for pool in numbers.split(POOL * self._batch_size)]
        batches = torch.cat(pools).view(-1, self._batch_size)
        return batches[torch.randperm(len(batches), generator=generator)]


def padded(samples: Samples, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:  # [b, t] int64, [b, t] bool
    """The tokens of these texts, padded on the right, and whether the target wrote them.

    Example:
        >>> samples = Samples.of([[5, 6, 7], [8, 9]], prompt_lengths=[2, 1])
        >>> tokens, is_response = padded(samples, [1, 0])
        >>> tokens.tolist(), is_response.int().tolist()
        ([[8, 9, 0], [5, 6, 7]], [[0, 1, 0], [0, 0, 1]])
    """
    tokens = pad_sequence([samples.text(number).long() for number in numbers], batch_first=True)
    places, index = torch.arange(tokens.shape[1]), list(numbers)
    is_response = (places >= samples.prompt_lengths[index, None]) & (places < samples.lengths[index, None])
    return tokens, is_response


def batch_of(
    samples: Samples, numbers: Sequence[int], features: Features, device: torch.device, seed: int
) -> HeadBatch:
    """These texts with their features, on a device."""
    tokens, is_response = (part.to(device) for part in padded(samples, numbers))
    return HeadBatch(tokens, is_response, *features(numbers, tokens), seed)


class FeatureCache:
    """What the target says about all texts, in a folder of limited size: for many epochs, or for several runs.

    Args:
        folder: holds one folder of safetensors for each target, layers and texts.
        samples: the texts.
        target: whose outputs are kept.
        limit_gb: how much may be written for these.

    Raises:
        ValueError: it would be more.

    Example:
        >>> import specdec, tempfile
        >>> target = FrozenTarget(specdec.PagedModel(specdec.load_embedded()[0]), layers=[1, 6])
        >>> samples = Samples.of([[5, 6, 7], [8, 9]], prompt_lengths=[1, 1])
        >>> cache = FeatureCache(Path(tempfile.mkdtemp()), samples, target, limit_gb=0.001)
        >>> cache.fill()
        >>> cache([1, 0], padded(samples, [1, 0])[0]).features.shape
        torch.Size([2, 3, 512])
    """

    def __init__(self, folder: Path, samples: Samples, target: FrozenTarget, limit_gb: float) -> None:
        self._samples, self._target = samples, target
        size = int(samples.lengths.sum()) * target.width * target.paged.dtype.itemsize
        if size > limit_gb * 1e9:
            raise ValueError(
                f"expected texts whose features take at most {limit_gb:g} GB, got {size / 1e9:.3g}; raise --cache-gb, "
                "or leave it out: they are then computed when they are wanted"
            )
        self._folder = folder / f"{zlib.crc32(repr((target.identity, samples.fingerprint)).encode()):08x}"

    def fill(self, share: tuple[int, int] = (0, 1), advance: Advance = nobody) -> None:
        """Writes what is missing; of several processes each its share (number, how many)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        count = -(-len(self._samples) // SHARD)
        for shard in range(share[0], count, share[1]):
            advance(shard, count, "features")
            path = self._path(shard)
            if not path.exists():
                numbers = range(shard * SHARD, min((shard + 1) * SHARD, len(self._samples)))
                outputs = self._target.outputs(padded(self._samples, numbers)[0]).cpu()
                lengths = self._samples.lengths[list(numbers)].tolist()
                rows = {str(n): outputs[i, : lengths[i]].clone() for i, n in enumerate(numbers)}
                save_whole(rows, path)

    def __call__(self, numbers: Sequence[int], tokens: Tensor) -> TargetRows:
        """Read from the disk, with zeros for padding."""
        rows = []
        for number in numbers:
            with safe_open(self._path(number // SHARD), "pt") as shard:
                rows.append(shard.get_tensor(str(number)))
        return self._target.split(pad_sequence(rows, batch_first=True).to(tokens.device))

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:06d}.safetensors"
