"""Training in mixed precision on a real GPU; needs one, so CI leaves it out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elastic_export.config.recipe import DataConfig, TrainConfig
from elastic_export.data import load_dataset, top1
from elastic_export.elastic import Supernet
from elastic_export.families import get_family
from elastic_export.families.vit import VitConfig
from elastic_export.train import train_supernet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

CONFIG = VitConfig(
    image_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    width=(32, 64),
    depth=(1, 2),
    heads=(2, 4),
    head_dim=16,
    mlp_ratio=(2.0, 4.0),
    pos_std=0.5,
)


def test_mixed_precision_learns_and_comes_home(tmp_path: Path) -> None:
    data = load_dataset(DataConfig(dataset="digits"))
    net = Supernet.create(get_family("vit"), CONFIG, seed=0)
    steps = TrainConfig(steps=200, lr=3e-3, warmup_steps=20)
    train_supernet(net, data.train, steps, seed=0, work=tmp_path, device="cuda")
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert top1(lambda x: net(net.space.max(), x), data.test) > 80
