"""SmoothQuant: the same function in float, patterns kept, and less error in INT8."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from elastic_export.config.calibration import CalibrationRecipe
from elastic_export.data.splits import ArraySplit
from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.registry import family_config
from elastic_export.quantize.calibrate import calibrate, model_digest
from elastic_export.quantize.fake import fake_quantize
from elastic_export.quantize.smooth import smooth

OUTLIERS = slice(3, None, 8)


def _recipe(alpha: float | None = 0.5, **more: object) -> CalibrationRecipe:
    return CalibrationRecipe(**{"name": "t", "smooth": alpha, "images": 12, "batch_size": 5} | more)


def _split(channels: int, size: int, n: int = 12) -> ArraySplit:
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    return ArraySplit("calibration", x, torch.zeros(n), 1)


def _shaken(net: nn.Module) -> nn.Module:
    """Every parameter away from zero and one, with a few large channels in each LayerNorm."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for part in net.modules():
            if isinstance(part, nn.LayerNorm) and part.weight is not None:
                part.weight[OUTLIERS] *= 20.0
    return net.eval()


def _vit(**more: object) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "depth": 2}
    torch.manual_seed(0)
    return _shaken(VisionTransformer(**sizes | {"embed_dim": 48, "num_heads": 3} | more))


def _swin() -> nn.Module:
    torch.manual_seed(0)
    # 9 x 9 tokens in windows of 4: rolled, padded and cut.
    net = SwinTransformer(
        img_size=18, patch_size=2, in_chans=1, num_classes=10, embed_dim=24, depths=(2, 2),
        num_heads=(2, 4), window_size=4,
    )  # fmt: skip
    return _shaken(net)


def _apart(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        before, after = net(x), other(x)
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize(
    ("make", "size", "scaled"),
    [
        (_vit, 8, 4),
        (lambda: _vit(class_token=False, global_pool="avg"), 8, 4),
        # Four blocks, and the patch merging of the second stage.
        (_swin, 18, 9),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays_the_same(make, size: int, scaled: int, alpha: float) -> None:
    net, split = make(), _split(1, size)
    digest = model_digest(net)
    found = smooth(net, split, _recipe(alpha))
    assert len(found.layers) == scaled
    assert _apart(net, found.module, split.x) <= 1e-5
    assert model_digest(net) == digest
    assert model_digest(found.module) != digest


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "cait_xxs24_224"])
def test_networks_that_call_their_layers_in_other_ways(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}
    net = _shaken(timm.create_model(name, **sizes))
    split = _split(3, 32)
    found = smooth(net, split, _recipe())
    assert "blocks.0.attn.qkv" in found.layers
    assert _apart(net, found.module, split.x) <= 1e-5


SWIN_STAGES = [{"depth": [2], "heads": [2]}, {"depth": [2], "heads": [4]}]
TOKENS = {"kind": "token", "depth": [1], "channels": [16], "v_scale": [1.0], "qk_scale": [1.0]}
FAMILIES = [
    ("vit", {"width": [32], "depth": [2], "heads": [2], "head_dim": 16, "mlp_ratio": [2.0]}, 4),
    ("swin", {"width": [24], "window": 4, "patch_size": 2, "stages": SWIN_STAGES}, 9),
    ("convnext", {"stages": [{"depth": [1], "width": [16]}, {"depth": [2], "width": [32]}]}, 3),
    ("autoformer", {"super_width": 64, "super_depth": 2, "super_heads": 1, "width": [64],
                    "super_mlp_ratio": 2.0, "depth": [2], "heads": [1], "mlp_ratio": [2.0]}, 4),
    ("resnet", {"stages": [{"depth": [1], "width": [16], "expand": [0.25]}]}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "scaled"), FAMILIES)
def test_our_families(name: str, settings: dict[str, object], scaled: int) -> None:
    family = get_family(name)
    config = family_config(family, {"image_size": 32, "num_classes": 10, **settings})
    supernet = Supernet.create(family, config, seed=1)
    net = _shaken(extract(supernet, supernet.space.max()).module)
    split = _split(3, 32)
    found = smooth(net, split, _recipe())
    assert len(found.layers) == scaled
    assert _apart(net, found.module, split.x) <= 1e-5


def test_scales_are_those_of_the_paper() -> None:
    net, split = _vit(), _split(1, 8)
    found = smooth(net, split, _recipe(0.3))
    kept: list[Tensor] = []
    net.blocks[1].norm2.register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        net(split.x)
    x, weight = kept[0].flatten(0, 1).abs().amax(0), net.blocks[1].mlp.fc1.weight
    scale = x**0.3 / weight.abs().amax(0) ** 0.7
    after = found.module.blocks[1]
    torch.testing.assert_close(after.mlp.fc1.weight, weight * scale)
    torch.testing.assert_close(after.norm2.weight, net.blocks[1].norm2.weight / scale)
    torch.testing.assert_close(after.norm2.bias, net.blocks[1].norm2.bias / scale)


def test_batches_make_no_difference() -> None:
    net, split = _vit(), _split(1, 8)
    one = smooth(net, split, _recipe(batch_size=12)).module
    many = smooth(net, split, _recipe(batch_size=1)).module
    assert _apart(one, many, split.x) <= 1e-5
    torch.testing.assert_close(one.blocks[0].norm1.weight, many.blocks[0].norm1.weight)


def test_int8_really_gets_better_with_outlier_channels() -> None:
    net, split = _vit(), _split(1, 8, 64)
    recipe = _recipe(images=64, batch_size=32)
    smoothed = smooth(net, split, recipe).module
    with torch.no_grad():
        exact = net(split.x)

        def error(module: nn.Module) -> float:
            rounded = fake_quantize(module, calibrate(module, split, recipe))
            return float((rounded(split.x) - exact).square().mean())

        assert error(smoothed) < 0.5 * error(net)


def test_patterns_stay() -> None:
    net, split = _vit(), _split(1, 8)
    qkv = net.blocks[0].attn.qkv.weight
    with torch.no_grad():
        qkv.view(-1, 4)[:, :2] = 0.0
    after = smooth(net, split, _recipe()).module.blocks[0].attn.qkv.weight
    assert torch.equal(after == 0, qkv == 0)


def test_channels_of_zeros_are_left_alone() -> None:
    net, split = _vit(), _split(1, 8)
    norm, qkv = net.blocks[0].norm1, net.blocks[0].attn.qkv
    with torch.no_grad():
        norm.weight[5] = norm.bias[5] = 0.0
        qkv.weight[:, 7] = 0.0
    after = smooth(net, split, _recipe()).module
    assert all(parameter.isfinite().all() for parameter in after.parameters())
    assert torch.equal(after.blocks[0].attn.qkv.weight[:, 5], qkv.weight[:, 5])
    assert after.blocks[0].norm1.weight[7] == norm.weight[7]
    assert _apart(net, after, split.x) <= 1e-5


class Odd(nn.Module):
    """A LayerNorm and what may read it besides a Linear of its channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Conv2d(1, 32, 2, 2)
        self.norm = nn.LayerNorm(32, elementwise_affine=how != "no weight")
        self.mix = nn.Linear(32, 32)
        self.wide = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        if self.how == "residual":
            z = y + self.mix(y)
        elif self.how == "two sources":
            z = self.mix(y) + self.mix(x)
        elif self.how == "tokens for channels":
            z = self.mix(y.reshape(x.shape[0], 32, -1).transpose(1, 2))
        elif self.how == "pairs":
            z = self.wide(y.reshape(x.shape[0], -1, 64))
        elif self.how == "in place":
            z = self.mix(y.mul_(2.0))
        elif self.how == "weight elsewhere":
            z = self.mix(y) + self.mix.weight.sum()
        else:
            z = self.mix(y)
        return self.head(F.gelu(z).mean(1))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("residual", "read by add, too"),
        ("two sources", "read by mix"),
        ("tokens for channels", "read by mix"),
        ("pairs", "read by wide"),
        ("in place", "read by mul_"),
        ("weight elsewhere", "read by mix"),
        ("no weight", "no weight"),
    ],
)
def test_what_is_read_otherwise_is_left_and_said_so(how: str, reason: str) -> None:
    torch.manual_seed(0)
    net, split = Odd(how).eval(), _split(1, 8)
    found = smooth(net, split, _recipe())
    assert found.layers == ()
    assert reason in found.left["norm"]
    assert model_digest(found.module) == model_digest(net)


def test_the_plain_one_is_smoothed() -> None:
    torch.manual_seed(0)
    net, split = Odd("plain").eval(), _split(1, 8)
    found = smooth(net, split, _recipe())
    assert (found.layers, found.left) == (("mix",), {})


def test_what_stays_in_floating_point_is_left() -> None:
    net, split = _vit(), _split(1, 8)
    found = smooth(net, split, _recipe(skip=("blocks.0",)))
    assert set(found.layers) == {"blocks.1.attn.qkv", "blocks.1.mlp.fc1"}
    assert "becomes INT8" in found.left["blocks.0.norm1"]
    assert "becomes INT8" in found.left["norm"]


def test_without_alpha_nothing_changes() -> None:
    net, split = _vit(), _split(1, 8)
    found = smooth(net, split, _recipe(None))
    assert found.layers == ()
    assert model_digest(found.module) == model_digest(net)
    assert found.module is not net


def test_bad_images_and_values() -> None:
    net, split = _vit(), _split(1, 8)
    with pytest.raises(UserError, match=r"have 3 channel\(s\), but the module takes 1"):
        smooth(net, _split(3, 8), _recipe())
    with pytest.raises(UserError, match="13 images were asked"):
        smooth(net, split, _recipe(images=13))
    net.pos_embed.data[0, 0, 0] = float("nan")
    with pytest.raises(
        UserError, match=r'NaN in the output of LayerNorm "blocks\.0\.norm1", in ba'
    ):
        smooth(net, split, _recipe())
