"""An iterator over a grain data set that can be closed, and that does not go on after an error."""

from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator of batches that owns threads or processes: close it, or use it in a `with`."""

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        self._iterator: grain.DatasetIterator | None = iterator
        self._error: Exception | None = None

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            # grain would go on with the batch after the broken one, and nobody would notice.
            self._error = error
            self.close()
            raise

    def close(self) -> None:
        """Ends the threads and processes; the iterator is over then."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def iterate(batches: grain.MapDataset, num_workers: int, num_threads: int) -> Batches:
    """Reads a data set of batches ahead, in worker processes or (0) in threads of this one."""
    # An element is a batch here; grain's default buffer of 500 would fill the memory.
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(num_threads, 2) if num_threads else 0
    )
    dataset = batches.to_iter_dataset(options)
    if num_workers:
        # grain's workers look at absl flags, which only an absl main has parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers)
    return Batches(iter(dataset))
