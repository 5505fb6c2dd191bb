"""Which layers of an engine run on the DLA, as the builder's verbose log says.

Format: recorded in github.com/NVIDIA-AI-IOT/jetson_dla_tutorial, and with another heading in
``samples/sampleCudla/README.md`` of github.com/NVIDIA/TensorRT.
"""

from typing import Dict, Optional

from elastic_export.measure.board.shell import Teller

__all__ = ["count_dla_layers"]


def count_dla_layers(log: str, asked: Optional[int], teller: Teller) -> Dict[str, Optional[int]]:
    """Count the layers on either side; with GPU fallback, nothing else tells that all fell back.

    Args:
        log: Of the build.
        asked: The DLA core that the engine is for; None for the GPU.
        teller: Told when a DLA was asked for and runs nothing.

    Returns:
        ``on_dla`` (each a part of the network that the DLA runs as one) and ``on_gpu``; None where
        the log says nothing.
    """
    begin = max(0, log.lower().rfind("layers running on dla"))
    on_dla, on_gpu = (log.count(tag, begin) for tag in ("[DlaLayer]", "[GpuLayer]"))
    if not on_dla and not on_gpu:
        return {"on_dla": None, "on_gpu": None}
    if asked is not None and not on_dla:
        teller.note("no layer runs on the DLA: the GPU took them all")
    return {"on_dla": on_dla, "on_gpu": on_gpu}
