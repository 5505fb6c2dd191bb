"""NNCF's quantizer for ONNX files; runs in the environment of that peer, not in ours.

    python quantize_nncf.py FP32.onnx IMAGES.npy OUT.onnx KIND

``IMAGES.npy`` holds float32 ``(N, C, H, W)``; ``KIND`` is transformer or cnn.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main() -> None:
    """Quantize with the defaults and the model type that NNCF asks for."""
    fp32, images, out, kind = sys.argv[1:5]
    rows = [image[None] for image in np.load(images)]
    dataset = nncf.Dataset(rows, lambda row: {"input": row})
    model = nncf.quantize(
        onnx.load(fp32),
        dataset,
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER if kind == "transformer" else None,
        target_device=nncf.TargetDevice.CPU,
    )
    onnx.save(model, out)


if __name__ == "__main__":
    main()
