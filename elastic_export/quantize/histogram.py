"""A streaming histogram of absolute values, and the ranges that are read from it.

It replaces ModelOpt's ``HistogramCalibrator`` inside ModelOpt's own calibration, because that one
(0.47, measured on known distributions) cannot be asked for a percentile through ``mtq.quantize``,
reads percentiles up to 1.5 % low, grows without bound when a later batch is larger (43,194 bins
for ten outliers), counts at most 2^24 values per bin and batch, and needs 2 to 450 s for one
entropy range. This one keeps 2048 bins whatever comes, counts exactly, interpolates inside a bin
and needs about 20 ms for an entropy range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Histogram"]

BINS = 2048
LEVELS = 128
FEWEST_BINS = 256
VALUES_PER_BIN = 64
CHUNK = 1 << 18
"""Values counted at once, so that the temporaries stay in the processor's cache."""
SMALLEST = 1e-30
"""Values below count as zero."""


class Histogram:
    """Counts of ``|x|`` in 2048 equal bins over a limit that doubles when larger values come.

    Zeros are counted apart (a ReLU makes many, and they need no range).
    Memory does not depend on how much was collected. Two neighbouring bins are merged where the
    limit doubles, so no count is ever moved to a wrong place.
    """

    def __init__(self) -> None:
        self.zeros = 0
        self.limit = 0.0
        self.maximum = 0.0
        self.counts: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)

    def collect(self, x: Tensor) -> None:
        """Add a tensor of finite values, of any shape and floating dtype."""
        flat = x.detach().reshape(-1).float().cpu().numpy()
        for start in range(0, flat.size, CHUNK):
            self._add(np.abs(flat[start : start + CHUNK]))

    def _add(self, values: NDArray[np.float32]) -> None:
        live = values[values >= SMALLEST]
        self.zeros += values.size - live.size
        if not live.size:
            return
        top = float(live.max())
        self.maximum = max(self.maximum, top)
        if self.limit == 0.0:
            self.limit = top
        while self.limit < top:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, dtype=np.int64)])
            self.limit *= 2.0
        places = (live * np.float32(BINS / self.limit)).astype(np.int64)
        counted = np.bincount(places, minlength=BINS + 1)
        self.counts += counted[:BINS]
        self.counts[-1] += counted[BINS:].sum()

    @property
    def total(self) -> int:
        """How many values were collected."""
        return int(self.counts.sum()) + self.zeros

    def percentile(self, percent: float) -> float:
        """Return the limit that ``percent`` of all absolute values stay within.

        Linear inside the bin it falls into, so the error is below one bin: at most 1/1024 of the
        largest value seen. 100 returns that value exactly; so does a percentile that only zeros
        fill, because a range of zero would erase the rest.
        """
        if percent >= 100 or self.total == 0:
            return self.maximum
        wanted = percent / 100 * self.total - self.zeros
        if wanted <= 0:
            return self.maximum
        below = np.cumsum(self.counts)
        place = int(np.searchsorted(below, wanted))
        before = float(below[place] - self.counts[place])
        inside = (wanted - before) / float(self.counts[place])
        return min((place + inside) * self.limit / BINS, self.maximum)

    def entropy(self) -> float:
        """Return the limit whose 128-level histogram diverges least from the original (KL).

        The method of S. Migacz, "8-bit inference with TensorRT", GTC 2017: for every limit of at
        least 128 bins, what lies beyond is added to the last bin of the reference, the rest is
        merged into 128 levels and spread evenly over the bins that were not empty. The bin of zero
        counts like its neighbour, since zero is always exact.

        One addition: where the data is scarce, bins are merged until they hold 64 values on
        average (down to 256 bins). The divergence of single counts is noise that grows with the
        number of bins and cuts too much: 30,000 values after a GELU lost 1.9 times the squared
        error of the largest value's range with 2048 bins, 0.8 times with merged ones. Below some
        10,000 values per layer the method stays a gamble; take ``max`` or ``percentile`` there.
        """
        if self.total == 0 or self.maximum == 0.0:
            return self.maximum
        counts = self.counts.astype(np.float64)
        while len(counts) > FEWEST_BINS and self.counts.sum() < VALUES_PER_BIN * len(counts):
            counts = counts.reshape(-1, 2).sum(axis=1)
        bins = len(counts)
        counts[0] = counts[1]
        last = min(int(np.ceil(self.maximum / self.limit * bins)), bins)
        # Steps of at most 1/128 of the limit: finer ones cost time and change nothing that counts.
        fine = np.arange(LEVELS, max(last, LEVELS) + 1)
        candidates = fine[(fine % (1 << np.log2(fine / LEVELS).astype(int)) == 0) | (fine == last)]
        divergence = np.array([_divergence(counts, int(stop)) for stop in candidates])
        best = int(candidates[len(candidates) - 1 - int(np.argmin(divergence[::-1]))])
        return min(best * self.limit / bins, self.maximum)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """Kullback-Leibler divergence of the first ``stop`` bins from their 128-level form."""
    inside = counts[:stop]
    used = inside > 0
    level = np.arange(stop) * LEVELS // stop
    sums = np.bincount(level, weights=inside, minlength=LEVELS)
    filled = np.bincount(level, weights=used, minlength=LEVELS)
    coarse = np.where(used, (sums / np.maximum(filled, 1))[level], 0.0)
    reference = inside.copy()
    reference[-1] += counts[stop:].sum()
    if coarse[-1] == 0 and reference[-1] > 0:
        return float("inf")
    held = reference > 0
    if not held.any():
        return float("inf")
    p = reference[held] / reference.sum()
    q = coarse[held] / coarse.sum()
    return float(np.sum(p * np.log(p / q)))
