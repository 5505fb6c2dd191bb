"""The evaluate and measure stages: accuracy and latency of the files that are deployed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from elastic_export.artifacts.store import Artifact
from elastic_export.config.result import Accuracy, Latency
from elastic_export.config.targets import ResolvedTarget
from elastic_export.data.evaluate import top1
from elastic_export.engine.runners import OrtRunner, Runner
from elastic_export.measure.compare import choose
from elastic_export.measure.machine import describe_machine
from elastic_export.measure.protocol import measure_interleaved
from elastic_export.pipeline.descend import Named
from elastic_export.pipeline.flow import Flow
from elastic_export.pipeline.workshop import Workshop

__all__ = [
    "accuracies",
    "evaluate",
    "how",
    "in_batches",
    "latencies",
    "measure",
    "predictor",
    "samples",
]

_RESULT = "result.json"
_SAMPLE_FILE = "samples.safetensors"
_SAMPLES = 4


def in_batches(predict: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """Logits of more images than fit into one batch."""
    return torch.cat([predict(part) for part in x.split(batch_size)])


def predictor(runner: Runner, batch_size: int) -> Callable[[Tensor], Tensor]:
    """Let a runner of a fixed batch size take torch tensors of that many images or fewer."""

    def predict(x: Tensor) -> Tensor:
        missing = batch_size - len(x)
        full = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        return torch.from_numpy(runner.run(full.contiguous().numpy()))[: len(x)]

    return predict


def evaluate(
    flow: Flow, shop: Workshop, named: Named, exported: Artifact | None
) -> Artifact | None:
    """Top-1 of every exported file on the test split, in ONNX Runtime, and sample logits."""
    name = named.name
    settings = shop.recipe.measure

    def make(folder: Path, work: Path) -> dict[str, Any]:
        assert exported is not None
        paths = sorted(exported.path.glob("*.onnx"))
        count = _SAMPLES * settings.batch_size
        assert named.spec is not None
        data = shop.data_of(named.spec)
        images = next(iter(data.search.head(count).batches(count)))[0]
        samples = {"input": images.numpy()}
        found = {}
        shop.progress.start(f"evaluate {name}", len(paths))
        try:
            for path in paths:
                run = predictor(OrtRunner(path, threads=settings.threads), settings.batch_size)
                samples[path.name] = in_batches(run, images, settings.batch_size).numpy()
                found[path.name] = top1(run, data.test, batch_size=settings.batch_size)
                shop.progress.advance(note=f"{path.name} {found[path.name]:.1f} %")
        finally:
            shop.progress.finish()
        (folder / _RESULT).write_text(json.dumps(found, indent=1))
        save_file(samples, folder / _SAMPLE_FILE)
        return found

    config = {
        "test": shop.data_digests["test"],
        "search": shop.data_digests["search"],
        "threads": settings.threads,
        "batch_size": settings.batch_size,
    }
    return flow.do(
        "evaluate", name, config=config, inputs=[exported], make=make, tools=["onnxruntime"]
    )


def samples(evaluated: Artifact) -> dict[str, np.ndarray]:
    """A few images under ``input``, and the logits that each exported file gave for them."""
    return dict(load_file(evaluated.path / _SAMPLE_FILE))


def how(target: ResolvedTarget | None) -> Literal["deployed", "emulated"]:
    """Say whether ONNX Runtime on this machine is what a target deploys; None is this machine."""
    return "deployed" if target is None or target.target.kind == "host" else "emulated"


def accuracies(
    shop: Workshop, evaluated: Artifact, target: ResolvedTarget | None = None
) -> dict[str, Accuracy]:
    """What :func:`evaluate` found, by file name, labelled for a target."""
    found = json.loads((evaluated.path / _RESULT).read_text())
    return {
        name: Accuracy(
            top1=value,
            images=len(shop.data.test),
            split="test",
            runner="ONNX Runtime",
            how=how(target),
        )
        for name, value in found.items()
    }


def measure(
    flow: Flow,
    shop: Workshop,
    exported: Mapping[Named, Artifact | None],
    files: Mapping[str, str],
) -> Artifact | None:
    """Latency of every descendant on this machine, all of them interleaved in one run.

    Args:
        flow: The store and the plan.
        shop: The recipe and what is loaded.
        exported: Each descendant's export artifact.
        files: Precision to file name, as the host target gets them.
    """
    settings, machine = shop.recipe.measure, describe_machine()

    def make(folder: Path, work: Path) -> dict[str, Any]:
        candidates = {}
        for named, artifact in exported.items():
            assert artifact is not None
            assert named.spec is not None
            test = shop.data_of(named.spec).test
            image = next(iter(test.batches(settings.batch_size)))[0].numpy()
            for precision, file in files.items():
                runner = OrtRunner(artifact.path / file, threads=settings.threads)
                candidates[f"{named.name}/{precision}"] = partial(runner.run, image)
        timings = measure_interleaved(candidates, settings, progress=shop.progress)
        found: dict[str, Any] = {"latency": {}, "chosen": {}}
        for name in (named.name for named in exported):
            mine = {precision: timings[f"{name}/{precision}"] for precision in files}
            found["latency"][name] = {
                precision: timing.latency(
                    runner="ONNX Runtime",
                    precision=precision,
                    batch_size=settings.batch_size,
                    threads=settings.threads,
                    machine=machine,
                ).model_dump(mode="json")
                for precision, timing in mine.items()
            }
            found["chosen"][name] = list(choose(mine))
        (folder / _RESULT).write_text(json.dumps(found, indent=1))
        return {"candidates": len(candidates)}

    config = {
        "measure": settings.model_dump(exclude={"on"}),
        "machine": machine,
        "files": dict(files),
        "data": shop.data_digests["test"],
    }
    return flow.do(
        "measure",
        "this machine",
        config=config,
        inputs=list(exported.values()),
        make=make,
        tools=["onnxruntime"],
    )


def latencies(measured: Artifact, name: str) -> tuple[dict[str, Latency], str, str]:
    """One descendant's latencies by precision, the chosen precision, and why it was chosen."""
    found = json.loads((measured.path / _RESULT).read_text())
    chosen, reason = found["chosen"][name]
    figures = found["latency"][name].items()
    return {p: Latency.model_validate(raw) for p, raw in figures}, chosen, reason
