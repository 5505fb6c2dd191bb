"""Fixtures of ElasticViT: a checkpoint with averaged weights, and one without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from case import Case, Counted

from elastic_export.families import get_family
from elastic_export.families.counters.elasticvit import elasticvit_mflops
from elastic_export.families.elasticvit import ElasticVitConfig, from_arch


def cases(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Case]:
    config = yaml.safe_load(next(folder.glob("*.yaml")).read_text())
    # The system's own configuration for evaluation names subnets at its top level.
    archs = {f"arch_{name}": row["arch"] for name, row in fixture["archs"].items()}
    config = {**config, **archs}
    sources = {
        file.get("weights_used_by_official_loader") == "model_ema": folder / name
        for name, file in fixture["checkpoints"].items()
    }
    for name, row in fixture["archs"].items():
        common = {"config": config, "spec": f"arch_{name}", "input": f"{name}.input"}
        size = row["resolution"]
        rows: dict[str, dict[str, Any]] = {
            f"{name}.logits": {"official": {"flops_m": row["flops_official_M"]}},
            f"{name}.logits_shared_input": {"input": "shared.input", "final_size": size},
            f"{name}.logits_batch1": {"batch": 1},
            f"{name}.bncal.logits": {"recalibrate": f"{name}.bncal.images"},
            f"noema.{name}.logits": {},
        }
        for key, more in rows.items():
            averaged = not key.startswith("noema.")
            if key in fixture["tensors"] and averaged in sources:
                label = key.replace(".logits_", ".").replace(".logits", "")
                yield Case(name=label, source=sources[averaged], logits=key, **{**common, **more})


def counted(folder: Path, fixture: Mapping[str, Any]) -> Iterator[Counted]:
    published = fixture.get("published_space_flops")
    if published is None:
        return
    config = _config(published)
    stored = get_family("elasticvit").stored(config)
    params = sum(parameter.numel() for parameter in stored.parameters())
    yield Counted("supernet", lambda: {"params": params}, {"params": published["params"]})
    for name, row in published["rows"].items():
        genes = from_arch(config, row["arch"], name=name)
        yield Counted(
            name,
            lambda genes=genes: {"flops_m": elasticvit_mflops(config, genes)},
            {"flops_m": row["flops_official_M"]},
        )


def _config(published: Mapping[str, Any]) -> ElasticVitConfig:
    space, stages = published["space"], []
    first = space["stage"].index("T")
    for s, kind in enumerate(space["stage"]):
        step = 8 if kind == "C" else space["head_dims"]
        stage: dict[str, Any] = {
            "kind": kind,
            "depth": range(space["min_depth"][s], space["max_depth"][s] + 1),
            "channels": range(space["min_channels"][s], space["max_channels"][s] + 1, step),
            "downsample": space["downsampling"][s],
        }
        if kind == "C":
            stage |= {"ratio": sorted(space["conv_ratio"]), "se": space["se"][s]}
        else:
            stage["mlp_ratio"] = sorted(space["mlp_ratio"])
            stage["v_scale"] = sorted(space["v_scale"][s - first])
        stages.append({key: tuple(v) if isinstance(v, range) else v for key, v in stage.items()})
    return ElasticVitConfig.model_validate(
        {
            "resolution": space["res"],
            "stages": stages,
            "head_dim": space["head_dims"],
            "head_expand": space["classifier_mul"],
            "head_hidden": published["classifer_head_dim"][1],
            "num_classes": published["num_classes"],
        }
    )
