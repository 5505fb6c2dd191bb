"""Once-for-all files: both spellings, what shapes tell, specialized folders, bad content."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.ofa.infer import simplest, width_mult_of
from elastic_export.checkpoints.ofa.names import mbv3_name, resnet_name
from elastic_export.elastic import Supernet, extract
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.registry import family_config

SETTINGS: dict[str, dict[str, Any]] = {
    "ofa_mbv3": {"width_mult": 0.3, "ks_list": [3, 5], "depth_list": [1, 2]},
    "ofa_resnet50d": {"width_mult_list": [0.1], "depth_list": [0, 1]},
}
COMMON = {"resolution": [32, 48], "num_classes": 4}


def supernet_of(family: str, **more: Any) -> Supernet:
    found = get_family(family)
    config = family_config(found, {**COMMON, **SETTINGS[family], **more})
    supernet = Supernet.create(found, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for key, tensor in supernet.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return supernet


def plain_name(supernet: Supernet, name: str) -> str:
    config: Any = supernet.config
    if supernet.family.name == "ofa_mbv3":
        return mbv3_name(name, [max(config.depths(s)) for s in range(1, 6)], config.expands)
    kept = config.keeps_stem(max(config.stem_depths))
    return resnet_name(name, [config.blocks(s) for s in range(1, 5)], kept)


def elastic_names(supernet: Supernet) -> dict[str, Tensor]:
    """As the official supernet names them: elastic layers wrap an ordinary one."""
    state = {}
    for name, tensor in supernet.state_dict().items():
        plain = plain_name(supernet, name)
        wrapped = supernet.family.name == "ofa_resnet50d" or re.match(r"blocks\.[1-9]", plain)
        if wrapped and ".se." not in plain:
            plain = re.sub(r"\.conv\.weight$", ".conv.conv.weight", plain)
            plain = re.sub(r"\.(bn|linear)\.(\w+)$", r".\1.\1.\2", plain)
        state[plain] = tensor
    return state


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", name): tensor
        for name, tensor in state.items()
    }


def undoubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    once = {re.sub(r"\.(bn|linear)\.\1\.", r".\1.", n): t for n, t in state.items()}
    return {re.sub(r"\.conv\.conv\.weight$", ".conv.weight", n): t for n, t in once.items()}


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def saved(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"state_dict": state, **more}, path)
    return path


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def supernet(request: pytest.FixtureRequest) -> Supernet:
    return supernet_of(request.param)


@pytest.mark.parametrize(
    ("family", "spelling"),
    [
        ("ofa_mbv3", dict),
        ("ofa_mbv3", old_names),
        ("ofa_mbv3", undoubled),
        ("ofa_mbv3", prefixed),
        ("ofa_resnet50d", dict),
        ("ofa_resnet50d", prefixed),
    ],
)
def test_a_supernet_comes_back(family: str, spelling: Callable[..., Any], tmp_path: Path) -> None:
    written = supernet_of(family)
    state = spelling(elastic_names(written))
    path = saved(tmp_path / "net.pth", state, epoch=3, optimizer={"lr": 0.1})
    settings = {name: SETTINGS[family][name] for name in SETTINGS[family] if "width" not in name}
    found = import_supernet(path, config={**settings, "resolution": [32, 48]})
    read = found.supernet
    assert (found.format, read.family.name, found.used) == ("ofa", family, "state_dict")
    assert set(found.ignored) == {"epoch", "optimizer"}
    wanted = written.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in read.state_dict().items())
    assert read.space.describe() == written.space.describe()
    assert any("estimate them anew" in note for note in found.notes)


def test_what_the_file_does_not_tell_is_assumed_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", elastic_names(supernet_of("ofa_mbv3")))
    found = import_supernet(path, config={})
    config: Any = found.supernet.config
    assert (config.ks_list, config.expand_ratio_list) == ((3, 5), (3, 4, 6))
    assert config.depth_list == (2,)
    assert config.resolution[-1] == 224
    assert any("bn_eps 1e-05" in note and "depth_list [2]" in note for note in found.notes)


def test_a_file_of_plain_layers_is_one_network(tmp_path: Path) -> None:
    written = supernet_of("ofa_mbv3", ks_list=[5], expand_ratio_list=[4], depth_list=[2])
    path = saved(tmp_path / "net.pth", undoubled(elastic_names(written)))
    found = import_supernet(path, config={"image_size": 32})
    assert found.supernet.space.min() == found.supernet.space.max()
    assert "without choices" in found.notes[0]


def test_crops_without_matrices(tmp_path: Path) -> None:
    written = supernet_of("ofa_mbv3", kernel_transform=False)
    path = saved(tmp_path / "net.pth", elastic_names(written))
    found = import_supernet(path, config={"ks_list": [3, 5], "depth_list": [1, 2]})
    assert not found.supernet.config.kernel_transform  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda s: s.pop("first_conv.conv.weight"), {}, "has no tensor first_conv"),
        (lambda s: s.update(extra=torch.zeros(2)), {}, "does not know: extra"),
        (lambda s: _drop(s, "blocks.10."), {}, "has 10 blocks"),
        (lambda s: _drop(s, "blocks.4."), {}, r"no tensor of blocks\.4"),
        (
            lambda s: s.update({"blocks.1.mobile_inverted_conv.point_linear.bn.bias": s["x"]}),
            {},
            "the same tensor",
        ),
        (lambda s: _halve(s, "blocks.3.conv.depth_conv.bn.bn.bias"), {}, "has the shape"),
        (lambda s: _halve(s, "first_conv.conv.weight"), {}, "no multiple of the published"),
        (lambda s: _empty(s, "classifier.linear.weight"), {}, "is empty"),
        (lambda s: None, {"ks_list": [3, 7]}, "but the kernels' matrices"),
        (lambda s: None, {"depth_list": [3]}, "largest of depth_list"),
        (lambda s: None, {"expand_ratio_list": [3, 5]}, "largest of expand_ratio_list"),
        (lambda s: None, {"width_mult": 0.5}, "these settings need"),
        (lambda s: None, {"num_classes": 9}, "these settings need"),
        (lambda s: None, {"ks_list": "all"}, "ks_list"),
        (lambda s: None, {"arch": {}}, "cannot be given"),
        (lambda s: None, {"widht_mult": 1}, 'Did you mean "width_mult"'),
    ],
)
def test_bad_supernets(
    change: Callable[[Any], Any], config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    state = elastic_names(supernet_of("ofa_mbv3"))
    state["x"] = torch.zeros(8)
    change(state)
    state.pop("x")
    with pytest.raises(UserError, match=said):
        import_supernet(saved(tmp_path / "net.pth", state), config=config)


def _drop(state: dict[str, Tensor], start: str) -> None:
    for name in [name for name in state if name.startswith(start)]:
        del state[name]


def _halve(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][: len(state[name]) // 2].clone()


def _empty(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][:0].clone()


def test_proxyless_supernets_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", {"feature_mix_layer.bn.weight": torch.ones(3)})
    with pytest.raises(UserError, match="ProxylessNAS"):
        import_supernet(path, format="ofa", config={})


def test_the_simplest_number() -> None:
    assert simplest(lambda x: 2.45 <= x <= 2.5, (), 2.4) == 2.5
    assert simplest(lambda x: x in (6, 7), (6,), 7) == 6
    assert simplest(lambda x: False, (), 1e12) is None
    assert width_mult_of((16, 16, 24, 40, 80, 112, 160, 960, 1280)) == 1.0
    assert width_mult_of((24, 24, 32, 48, 96, 136, 192, 1152, 1536)) == 1.2


def conv_layer(into: int, out: int, kernel: int, stride: int, act: str, bn: bool = True) -> Any:
    return {
        "name": "ConvLayer",
        "kernel_size": kernel,
        "stride": stride,
        "in_channels": into,
        "out_channels": out,
        "use_bn": bn,
        "act_func": act,
        "ops_order": "weight_bn_act",
    }


def special_folder(folder: Path, supernet: Supernet, spec: Any, size: int | None = 32) -> Path:
    """Write a descendant as the official code does."""
    module = extract(supernet, spec).module
    config: Any = supernet.config
    bn = {"momentum": 0.1, "eps": config.bn_eps, "ws_eps": None}
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    if supernet.family.name == "ofa_mbv3":
        net, names = mobile_tree(config, spec, shapes)
    else:
        net, names = resnet_tree(config, spec, shapes)
    folder.mkdir()
    (folder / "net.config").write_text(json.dumps({**net, "bn": bn}))
    if size is not None:
        (folder / "run.config").write_text(json.dumps({"image_size": size}))
    saved(folder / "init", {names(n): t for n, t in module.state_dict().items()})
    return folder


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The smallest network of each family as such a folder; tests change copies."""
    top, nets = tmp_path_factory.mktemp("smallest"), [supernet_of(name) for name in SETTINGS]
    return {
        net.family.name: special_folder(top / net.family.name, net, net.space.min()) for net in nets
    }


def mobile_tree(config: Any, spec: Any, shapes: Any) -> Any:
    strides, into, blocks, widths = (1, 2, 2, 2, 1, 2), config.widths[0], [], config.widths
    for s in range(6):
        for b in range(spec[f"blocks.{s}.d"] if s else 1):
            name, out = f"blocks.{s}.{b}", widths[s + 1]
            stride = 1 if b else strides[s]
            conv = {
                "name": "MBConvLayer",
                "in_channels": into,
                "out_channels": out,
                "kernel_size": shapes[f"{name}.conv_dw.weight"][-1],
                "stride": stride,
                "expand_ratio": spec[f"{name}.e"] if s else 1,
                "mid_channels": shapes[f"{name}.conv_dw.weight"][0] if s else None,
                "act_func": "h_swish" if s > 2 else "relu",
                "use_se": f"{name}.se.conv_reduce.weight" in shapes,
            }
            plain = stride == 1 and into == out
            shortcut = {"name": "IdentityLayer", "in_channels": [into], "out_channels": [out]}
            blocks.append(
                {"name": "ResidualBlock", "conv": conv, "shortcut": shortcut if plain else None}
            )
            into = out
    depths = [spec[f"blocks.{s}.d"] for s in range(1, 6)]
    net = {
        "name": "MobileNetV3",
        "first_conv": conv_layer(3, widths[0], 3, 2, "h_swish"),
        "blocks": blocks,
        "final_expand_layer": conv_layer(into, widths[-2], 1, 1, "h_swish"),
        "feature_mix_layer": conv_layer(widths[-2], widths[-1], 1, 1, "h_swish", bn=False),
        "classifier": {"name": "LinearLayer", "in_features": widths[-1], "out_features": 4},
    }
    return net, lambda name: mbv3_name(name, depths, config.expands)


def resnet_tree(config: Any, spec: Any, shapes: Any) -> Any:
    kept = "stem.1.conv.weight" in shapes
    inner, into = (shapes[f"stem.{i}.conv.weight"][0] for i in (0, 2))
    stem: list[Any] = [conv_layer(3, inner, 3, 2, "relu")]
    if kept:
        identity = {"name": "IdentityLayer", "in_channels": inner, "out_channels": inner}
        residual = conv_layer(inner, inner, 3, 1, "relu")
        stem.append({"name": "ResidualBlock", "conv": residual, "shortcut": identity})
    stem.append(conv_layer(inner, into, 3, 1, "relu"))
    blocks, depths = [], []
    for s, base in enumerate((2, 2, 4, 2), 1):
        depths.append(base + spec[f"layer{s}.d"])
        for b in range(depths[-1]):
            mid = shapes[f"layer{s}.{b}.conv1.weight"][0]
            out = shapes[f"layer{s}.{b}.conv3.weight"][0]
            blocks.append(
                {
                    "name": "ResNetBottleneckBlock",
                    "in_channels": into,
                    "out_channels": out,
                    "stride": 2 if s > 1 and not b else 1,
                    "expand_ratio": spec[f"layer{s}.{b}.e"],
                    "mid_channels": mid,
                    "downsample_mode": "avgpool_conv",
                }
            )
            into = out
    linear = {"name": "LinearLayer", "in_features": into, "out_features": 4}
    net = {"name": "ResNets", "input_stem": stem, "blocks": blocks, "classifier": linear}
    return net, lambda name: resnet_name(name, depths, kept)


def test_specialized_folders_compute_what_the_supernet_does(
    supernet: Supernet, tmp_path: Path
) -> None:
    rng, space = np.random.default_rng(0), supernet.space
    specs = [space.min(), space.max(), space.sample(rng), space.sample(rng)]
    for i, spec in enumerate(specs):
        found = import_supernet(special_folder(tmp_path / str(i), supernet, spec), config={})
        read = found.supernet
        assert read.space.min() == read.space.max()
        assert read.family.input_shape(read.config) == (3, 32, 32)
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            wanted = extract(supernet, spec).module(x)
            assert torch.equal(extract(read, read.space.max()).module(x), wanted)
        assert found.official is not None
        assert found.official(read.space.max())["params"] == supernet.costs([spec]).params[0]


def test_a_folder_without_a_size_needs_one(supernet: Supernet, tmp_path: Path) -> None:
    folder = special_folder(tmp_path / "net", supernet, supernet.space.min(), size=None)
    with pytest.raises(UserError, match="--set image_size"):
        import_supernet(folder, config={})
    found = import_supernet(folder, config={"image_size": 40, "specs": {"only": {}}})
    assert found.supernet.family.input_shape(found.supernet.config) == (3, 40, 40)
    assert found.supernet.spec("only") == found.supernet.space.max()


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("name", "ProxylessNASNets", "named 'ProxylessNASNets'"),
        ("bn.ws_eps", 1e-5, r"at bn\.ws_eps"),
        ("unknown", 1, "at unknown: unknown field"),
        ("first_conv.bias", True, r"at first_conv\.bias"),
        ("first_conv.kernel_size", 5, "for first_conv"),
        ("blocks.1.conv.groups", 4, r"blocks\.1\.conv\.groups"),
        ("blocks.1.conv.in_channels", 800, r"blocks\.1\.in_channels"),
        ("blocks.1.conv.kernel_size", 10**9, r"blocks\.1\.conv\.kernel_size"),
        ("blocks.1.conv.kernel_size", 4, "odd kernel sizes"),
        ("blocks.1.conv.kernel_size", 7, "has the shape"),
        ("blocks.1.conv.mid_channels", 13, "no multiple of 8"),
        ("blocks.1.conv.expand_ratio", 1, "expand_ratio 1"),
        ("blocks.2.conv.stride", 1, r"blocks\.2"),
        ("blocks.1.shortcut", {"name": "ZeroLayer"}, r"blocks\.1\.shortcut"),
        ("classifier.in_features", 7, r"classifier\.in_features"),
        ("blocks", [], "at blocks"),
    ],
)
def test_trees_that_would_not_be_computed_alike(
    where: str, value: Any, said: str, smallest: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(smallest["ofa_mbv3"], tmp_path / "net"))
    tree = json.loads((folder / "net.config").read_text())
    node, *path = tree, *where.split(".")
    for part in path[:-1]:
        node = node[int(part) if part.isdigit() else part]
    node[path[-1]] = value
    (folder / "net.config").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=said):
        import_supernet(folder, config={})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("net.config", "{", "not readable as JSON"),
        ("net.config", "[" * 100_000, "not readable as JSON"),
        ("net.config", "[]", "holds a list"),
        ("net.config", '{"name": ["MobileNetV3"]}', "describes a network named"),
        ("run.config", '{"image_size": "large"}', "no image_size"),
        ("run.config", '{"image_size": 64}', "say 32 for image_size"),
        ("init", "", "is empty"),
        ("init", None, "no file init"),
    ],
)
@pytest.mark.parametrize("family", sorted(SETTINGS))
def test_bad_folders(
    family: str, file: str, text: Any, said: str, smallest: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(smallest[family], tmp_path / "net"))
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(UserError, match=said):
        import_supernet(folder, config={"image_size": 32})
