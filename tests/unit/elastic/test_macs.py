"""MACs by layer, and what sparsity does to them in each convention."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from elastic_export.elastic.macs import count_macs


def test_known_networks() -> None:
    # 4.599 G with both attention products, as the design's reference count; 4.09 G.
    for name, wanted in (("deit_small_patch16_224", 4.599), ("resnet50", 4.089)):
        macs = count_macs(timm.create_model(name), (3, 224, 224))
        assert round(macs.total / 1e9, 3) == wanted


def test_layers_and_attention_add_up() -> None:
    macs = count_macs(timm.create_model("test_vit"), (3, 160, 160))
    products = 6 * 2 * 101 * 101 * 64
    assert sum(macs.layers.values()) + products == macs.total
    assert macs.layers["blocks.0.attn.qkv"] == 101 * 64 * 192


def test_patterns_weigh_their_layers() -> None:
    macs = count_macs(timm.create_model("test_vit"), (3, 160, 160))
    layer = macs.layers["blocks.0.mlp.fc1"]
    one = {"blocks.0.mlp.fc1.weight": "1:4"}
    assert macs.weighted(one, hardware=False) == macs.total - layer * 3 // 4
    assert macs.weighted(one, hardware=True) == macs.total - layer // 2
    assert macs.weighted({"blocks.0.mlp.fc1.weight": "4:8"}, hardware=True) == macs.total


@pytest.mark.parametrize(
    "name", ["test_vit", "resnet18", "mobilenetv3_small_050", "convnext_atto", "test_efficientnet"]
)
def test_answering_by_shapes_changes_no_count(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name).eval()
    size = net.pretrained_cfg["input_size"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *size, device="meta"))
    found = count_macs(net, size)
    assert found.total == counter.get_total_flops() // 2
    counts = counter.get_flop_counts()
    for layer, macs in found.layers.items():
        assert macs == sum(counts[f"{type(net).__name__}.{layer}"].values()) // 2, layer
