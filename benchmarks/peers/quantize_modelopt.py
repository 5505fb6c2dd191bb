"""ModelOpt's quantizer for ONNX files; runs in the environment of that peer, not in ours.

    python quantize_modelopt.py FP32.onnx IMAGES.npy OUT.onnx KIND

``IMAGES.npy`` holds float32 ``(N, C, H, W)``; ``KIND`` (transformer or cnn) is not used here.
"""

from __future__ import annotations

import sys

import numpy as np
from modelopt.onnx.quantization import quantize


def main() -> None:
    """Quantize with the defaults, but for what would not run on a processor."""
    fp32, images, out = sys.argv[1:4]
    quantize(
        onnx_path=fp32,
        quantize_mode="int8",
        calibration_data={"input": np.load(images)},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )


if __name__ == "__main__":
    main()
