"""The training core: supernets by the sandwich rule, and single descendants.

All randomness is a function of the seed and the step, so a run that was interrupted and resumed
ends with the same weights, bit for bit, as one that was not (on a CPU with the same number of
threads; CUDA kernels are not all deterministic).
"""

from elastic_export.train.finetune import FinetuneReport, finetune
from elastic_export.train.supernet import TrainReport, train_supernet

__all__ = ["FinetuneReport", "TrainReport", "finetune", "train_supernet"]
