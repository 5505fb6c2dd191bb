"""AutoFormer against an independent rewrite that looks every pair of tokens up in the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.export import check_parity, export_fp32
from elastic_export.families.autoformer import AutoFormer, AutoFormerConfig
from elastic_export.families.counters.autoformer import autoformer_flops, autoformer_params
from elastic_export.families.published import published
from elastic_export.families.registry import family_config
from elastic_export.space import Spec

TINY: dict[str, Any] = {
    "image_size": 20,
    "patch_size": 4,
    "num_classes": 5,
    "super_width": 144,
    "super_depth": 3,
    "super_heads": 2,
    "super_mlp_ratio": 3.3,
    "width": (24, 40, 136),
    "depth": (1, 2),
    "heads": (1, 2),
    "mlp_ratio": (0.7, 2.0),
    "max_relative_position": 2,
}
CONFIGS = {
    "all flags": AutoFormerConfig(**TINY),
    "no flags": AutoFormerConfig(**TINY, gp=False, change_qkv=False, relative_position=False),
    "stored rows with tables": AutoFormerConfig(**{**TINY, "heads": (2,)}, change_qkv=False),
    "far positions": AutoFormerConfig(**{**TINY, "max_relative_position": 9}, gp=False),
    "no positions, no bias": AutoFormerConfig(**TINY, no_abs_pos=True, qkv_bias=False),
    "scaled": AutoFormerConfig(**TINY, scale=True, relative_position=False, in_chans=1),
}


def filled(config: AutoFormerConfig) -> Supernet:
    supernet = Supernet.create(AutoFormer(), config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in supernet.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return supernet


def some_specs(supernet: Supernet, n: int = 3) -> list[Spec]:
    rng, space = np.random.default_rng(3), supernet.space
    return [space.min(), space.max(), *(space.sample(rng) for _ in range(n))]


def pairs(vertical: Tensor, horizontal: Tensor, grid: int, limit: int) -> Tensor:
    """The embedding of every pair of tokens (N, N, width), one by one."""
    tokens = grid * grid + 1
    out = torch.empty(tokens, tokens, vertical.shape[1], dtype=vertical.dtype)
    for i in range(tokens):
        for j in range(tokens):
            v = h = 0
            if i and j:
                (a, b), (c, d) = divmod(i - 1, grid), divmod(j - 1, grid)
                v = min(max(c - a, -limit), limit) + limit + 1
                h = min(max(d - b, -limit), limit) + limit + 1
            out[i, j] = vertical[v] + horizontal[h]
    return out


def reference(config: AutoFormerConfig, t: dict[str, Tensor], spec: Spec, x: Tensor) -> Tensor:
    e, b = int(spec["width"]), x.shape[0]
    x = F.conv2d(
        x,
        t["patch_embed.proj.weight"][:e],
        t["patch_embed.proj.bias"][:e],
        stride=config.patch_size,
    )
    x = torch.cat([t["cls_token"][..., :e].repeat(b, 1, 1), x.flatten(2).mT], 1)
    if not config.no_abs_pos:
        x = x + t["pos_embed"][..., :e]
    for i in range(int(spec["depth"])):
        p, heads = f"blocks.{i}.", int(spec[f"blocks.{i}.heads"])
        ratio = float(spec[f"blocks.{i}.mlp_ratio"])
        q_dim = 64 * heads if config.change_qkv else config.super_width
        weight = t[p + "attn.qkv.weight"][:, :e]
        if config.change_qkv:
            weight = torch.cat([weight[: 3 * q_dim][part::3] for part in range(3)])
        bias = t[p + "attn.qkv.bias"][: 3 * q_dim] if config.qkv_bias else None
        norm = [t[p + f"attn_layer_norm.{k}"][:e] for k in ("weight", "bias")]
        qkv = F.linear(F.layer_norm(x, (e,), *norm), weight, bias)
        q, k, v = qkv.reshape(b, -1, 3, heads, q_dim // heads).permute(2, 0, 3, 1, 4)
        scale = (q_dim // heads if config.change_qkv else e // heads) ** -0.5
        scores = torch.einsum("bhid,bhjd->bhij", q, k)
        tables = {
            kind: pairs(
                *(
                    t[f"{p}attn.rel_pos_embed_{kind}.embeddings_table_{o}"][:, : q_dim // heads]
                    for o in "vh"
                ),
                config.grid,
                config.max_relative_position,
            )
            for kind in ("kv" if config.relative_position else "")
        }
        if tables:
            scores = scores + torch.einsum("bhid,ijd->bhij", q, tables["k"])
        shares = (scores * scale).softmax(-1)
        mixed = shares @ v
        if tables:
            mixed = mixed + torch.einsum("bhij,ijd->bhid", shares, tables["v"])
        mixed = mixed.transpose(1, 2).reshape(b, -1, q_dim)
        if config.scale:
            mixed = mixed * (config.super_width / q_dim)
        x = x + F.linear(mixed, t[p + "attn.proj.weight"][:e, :q_dim], t[p + "attn.proj.bias"][:e])
        norm = [t[p + f"ffn_layer_norm.{k}"][:e] for k in ("weight", "bias")]
        n = int(e * ratio)
        y = F.layer_norm(x, (e,), *norm)
        y = F.gelu(F.linear(y, t[p + "fc1.weight"][:n, :e], t[p + "fc1.bias"][:n]))
        y = F.linear(y, t[p + "fc2.weight"][:e, :n], t[p + "fc2.bias"][:e])
        x = x + (y * (config.super_mlp_ratio / ratio) if config.scale else y)
    x = F.layer_norm(x, (e,), t["norm.weight"][:e], t["norm.bias"][:e])
    x = x[:, 1:].mean(1) if config.gp else x[:, 0]
    return F.linear(x, t["head.weight"][:, :e], t["head.bias"])


@pytest.mark.parametrize("name", CONFIGS)
def test_extracted_networks_compute_what_the_rewrite_computes(name: str) -> None:
    config = CONFIGS[name]
    supernet = filled(config)
    supernet.to("cpu", torch.float64)
    x = torch.randn(2, *supernet.family.input_shape(config), dtype=torch.float64)
    for spec in some_specs(supernet):
        with torch.no_grad():
            wanted = reference(config, supernet.state_dict(), spec, x)
            found = extract(supernet, spec).module(x)
            assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max(), spec
            assert torch.equal(supernet.eval()(spec, x), found)


@pytest.mark.parametrize("name", ["all flags", "no flags"])
def test_gradients_reach_the_interleaved_rows_and_nothing_else(name: str) -> None:
    supernet = filled(CONFIGS[name])
    spec = supernet.space.min()
    supernet.train()(spec, torch.randn(2, 3, 20, 20)).square().sum().backward()
    support: dict[str, Tensor] = {}
    for rule in supernet.activate(spec).rules.values():
        support |= rule.support(supernet.store.tensors)
    for key, parameter in supernet.named_parameters():
        grad = parameter.grad
        assert (grad is None) == (key not in support), key
        assert grad is None or not grad[~support[key]].any(), key


def test_the_graph_reads_no_weight_through_a_lookup(tmp_path: Path) -> None:
    supernet = filled(CONFIGS["all flags"])
    spec = supernet.space.canonical({"depth": 1})
    module = extract(supernet, spec).module
    x = torch.randn(1, 3, 20, 20)
    path = export_fp32(module, x, tmp_path / "net.onnx").path
    with torch.no_grad():
        assert check_parity(path, x.numpy(), module(x).numpy(), 1e-4)["relative_error"] <= 1e-4
    graph = onnx.load(path).graph
    constants = {item.name for item in graph.initializer}
    for node in graph.node:
        assert node.op_type not in ("Gather", "Expand", "Where"), node.name
        assert node.op_type != "Slice" or node.input[0] not in constants, node.name
    assert path.stat().st_size < 1.3 * 4 * sum(p.numel() for p in module.parameters()) + 1e5


@pytest.mark.parametrize(("name", "params", "macs"), [
    ("tiny", 5.87, 1.34), ("small", 22.89, 4.89), ("base", 53.69, 11.24)
])  # fmt: skip
def test_published_subnets_have_their_published_size(name: str, params: float, macs: float) -> None:
    entry = published("autoformer")[name]
    (title, genes), family = *entry["subnets"].items(), AutoFormer()
    choices = {
        key: sorted({*listed, *np.atleast_1d(genes[key]).tolist()})
        for key, listed in entry["choices"].items()
    }
    config = AutoFormerConfig.model_validate({**entry["supernet"], **choices})
    space = family.space(config)
    spec = space.canonical(family.named_specs(config)[title])
    assert round(autoformer_params(config, spec) / 1e6, 2) == params
    assert round(autoformer_flops(config, spec) / 1e9, 2) == macs
    counted = family.costs(config, space, space.encode(spec)[None])
    assert counted.params[0] == autoformer_params(config, spec)
    loaded = AutoFormerConfig.model_validate(config.model_dump(mode="json"))
    assert loaded == config


def test_a_subnet_is_offered_only_where_its_values_are_choices() -> None:
    assert AutoFormer().named_specs(AutoFormerConfig()) == {}
    assert "autoformer_tiny" in AutoFormer().named_specs(AutoFormerConfig(mlp_ratio=(3, 3.5, 4)))


def test_the_largest_choice_is_not_the_stored_size() -> None:
    supernet = filled(CONFIGS["all flags"])
    assert supernet.space.max()["width"] == 136
    assert supernet.state_dict()["pos_embed"].shape[-1] == 144


def test_values_that_are_stored_but_no_choices_can_be_added() -> None:
    space = AutoFormer().space(CONFIGS["all flags"])
    with pytest.raises(UserError) as found:
        space.canonical({"width": 144})
    assert "--set width=[24, 40, 136, 144]" in found.value.fix
    with pytest.raises(UserError) as found:
        space.canonical({"blocks.1.mlp_ratio": 3})
    assert "--set mlp_ratio=[0.7, 2.0, 3.0]" in found.value.fix
    with pytest.raises(UserError) as found:
        space.canonical({"heads": [1, 7]})
    assert found.value.fix == "Choose one of 1, 2."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": (24, 145)}, "width 145 is larger than the stored super_width 144"),
        ({"depth": (4,)}, "depth 4 is larger"),
        ({"mlp_ratio": (3.4,)}, "mlp_ratio 3.4 is larger"),
        ({"super_heads": 3, "heads": (3,)}, "holds 2 heads, not 3"),
        ({"super_heads": 3}, "tables of width 48"),
        ({"change_qkv": False}, r"cannot serve networks with \[1\] heads"),
        ({"super_width": 145, "change_qkv": False, "relative_position": False}, r"\[2\] heads"),
        ({"image_size": 21}, "not a multiple of patch_size"),
        ({"width": (1,)}, "below 1"),
        ({"width": (40, 24)}, "from small to large"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        family_config(AutoFormer(), {**TINY, **changes})


def test_timm_names_are_not_its_own() -> None:
    with pytest.raises(UserError, match="set it to autoformer"):
        AutoFormer().recognise({}, {})
