"""Levels in Elastoformer's layout: every level computes what its own file computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

sys.path.insert(0, str(Path(__file__).parent))

import elastoformer_layout as layout
from elastoformer_layout import Architecture, Kept, State, differences

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.elastoformer import guessed_heads
from elastic_export.elastic import extract
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import UserError
from elastic_export.families.nested import NestedConfig
from elastic_export.sparsity import check_patterns, pattern_mask

SIZES = {"embed": [12, 16, 24], "inner": [12, 18, 24], "hidden": [10, 17, 30]}


def write_vit(
    folder: Path, seed: int = 0, depth: int = 2, heads: int = 6, old: bool = False
) -> tuple[Architecture, list[State], list[Kept]]:
    generator = torch.Generator().manual_seed(seed)
    arch = layout.vit(depth, 24, 24, 30, generator)
    widths = {group: SIZES[group.rstrip("0123456789")] for group in arch.groups()}
    parts = {f"inner{i}": heads for i in range(depth)}
    states, kept = layout.random_levels(arch, widths, parts, generator)
    layout.write(folder, arch, states, kept, old=old)
    return arch, states, kept


@pytest.mark.parametrize("heads", [6, [6, 6, 6], [3, 2, 6], [6, 3, 12], [4, 3, 8], [1, 1, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_level_of_a_vit_computes_what_its_file_does(
    tmp_path: Path, seed: int, heads: int | list[int]
) -> None:
    _, states, _ = write_vit(tmp_path, seed)
    found = import_supernet(tmp_path, config={"heads": heads})
    assert (found.format, found.supernet.family.name) == ("elastoformer", "nested")
    counts = heads if isinstance(heads, list) else [heads] * 3

    def run(number: int, x: Tensor) -> Tensor:
        return layout.run_vit(layout.double(states[number - 1]), counts[number - 1], x)

    assert max(differences(found, run, 16)) <= 1e-12


def test_true_heads_give_slices_and_others_give_rows(tmp_path: Path) -> None:
    write_vit(tmp_path)
    config = import_supernet(tmp_path, config={"heads": 6}).supernet.config
    assert isinstance(config, NestedConfig)
    assert config.parts == {"inner": 6}
    assert not any(level.rows for level in config.levels)
    found = import_supernet(tmp_path, config={"heads": [4, 6, 6]})
    config = found.supernet.config
    assert isinstance(config, NestedConfig)
    assert [bool(level.rows) for level in config.levels] == [True, False, False]
    assert any("pruned with another number" in note for note in found.notes)
    assert NestedConfig.model_validate(config.model_dump(mode="json")) == config


def test_only_what_differs_is_stored_twice(tmp_path: Path) -> None:
    write_vit(tmp_path)
    found = import_supernet(tmp_path, config={"heads": 6})
    own = found.supernet.config.levels[0].overrides  # type: ignore[attr-defined]
    assert set(own) == {
        "cls_token",
        "pos_embed",
        "head.weight",
        "head.bias",
        "norm.bias",
        *(f"blocks.{i}.norm{n}.bias" for i in range(2) for n in (1, 2)),
    }
    assert any(note.startswith("Level 1: 23 of 32 tensors are slices") for note in found.notes)


def test_a_frozen_weight_that_moved_is_kept_and_told(tmp_path: Path) -> None:
    _, states, _ = write_vit(tmp_path)
    name = "vit.encoder.layer.1.intermediate.dense.weight"
    states[1][name] += 0.25
    torch.save(states[1], tmp_path / "Vit_b_16_Rebuilt_Level_2_state_dict_tiny.pth")
    found = import_supernet(tmp_path, config={"heads": 6})
    assert any("blocks.1.mlp.fc1.weight by 0.25" in note for note in found.notes)

    def run(number: int, x: Tensor) -> Tensor:
        return layout.run_vit(layout.double(states[number - 1]), 6, x)

    assert max(differences(found, run, 16)) <= 1e-12


@pytest.mark.parametrize("seed", [0, 1])
def test_every_level_of_a_resnet_computes_what_its_file_does(tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    arch = layout.resnet((2, 1, 2, 1), generator)
    widths = {
        group: [size // 2, size // 2 + 1 + i % 3, size]
        for i, (group, size) in enumerate(arch.groups().items())
    }
    states, kept = layout.random_levels(arch, widths, {}, generator)
    layout.write(tmp_path, arch, states, kept)
    found = import_supernet(tmp_path, config={"image_size": 64})

    def run(number: int, x: Tensor) -> Tensor:
        return layout.run_resnet(layout.double(states[number - 1]), x)

    assert max(differences(found, run, 64)) <= 1e-12
    net = found.supernet
    module = extract(net, net.space.min()).module
    assert len(net.family.fold_pairs(module)) == 1 + 6 * 3 + 4
    x = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        before = module(x)
        fold_batchnorm(module, net.family.fold_pairs(module))
        assert torch.allclose(module(x), before, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_every_level_of_a_vgg_computes_what_its_file_does(tmp_path: Path, bias: bool) -> None:
    """The core keeps torchvision's convolution biases; rebuilt levels have none."""
    generator = torch.Generator().manual_seed(3)
    arch = layout.vgg(generator)
    widths = {group: [4, 4 + i % 4, 8] for i, group in enumerate(arch.groups())}
    states, kept = layout.random_levels(arch, widths, {}, generator)
    for state in states if not bias else states[1:]:
        for name in [n for n in state if n.startswith("features") and n.endswith("bias")]:
            if name.replace("bias", "running_var") not in state:
                del state[name]
    layout.write(tmp_path, arch, states, kept)
    found = import_supernet(tmp_path, config={"image_size": 32})

    def run(number: int, x: Tensor) -> Tensor:
        return layout.run_vgg(layout.double(states[number - 1]), x)

    assert max(differences(found, run, 32)) <= 1e-12


def test_one_2_4_mask_of_the_largest_level_holds_in_all(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    arch = layout.vit(2, 32, 32, 48, generator)
    sizes = {"embed": [16, 24, 32], "inner": [16, 16, 32], "hidden": [20, 32, 48]}
    widths = {group: sizes[group.rstrip("0123456789")] for group in arch.groups()}
    parts = {"inner0": 4, "inner1": 4}
    layout.write(tmp_path, arch, *layout.random_levels(arch, widths, parts, generator))
    net = import_supernet(tmp_path, config={"heads": 4}).supernet
    masked = {
        f"blocks.{i}.{layer}.weight": "2:4"
        for i in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    with torch.no_grad():
        for name in masked:
            weight = net.store.tensors[name]
            weight.mul_(pattern_mask(weight, "2:4"))
    for number in (1, 2, 3):
        check_patterns(extract(net, net.spec(f"level{number}")).module.state_dict(), masked)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_earlier_revision_is_read_also_with_levels_numbered_from_the_other_end(
    tmp_path: Path, swapped: bool
) -> None:
    _, states, _ = write_vit(tmp_path, old=True)
    if swapped:
        two, three = (tmp_path / f"tiny_pruning_metadata_Level_{n}.pth" for n in (2, 3))
        aside = two.rename(tmp_path / "aside")
        three.rename(two)
        aside.rename(three)
    found = import_supernet(tmp_path, config={"heads": 6})
    assert swapped == any("whatever its name says" in note for note in found.notes)

    def run(number: int, x: Tensor) -> Tensor:
        return layout.run_vit(layout.double(states[number - 1]), 6, x)

    assert max(differences(found, run, 16)) <= 1e-12


def test_a_file_stands_for_its_experiment_and_subfolders_are_seen(tmp_path: Path) -> None:
    write_vit(tmp_path)
    for kind, pattern in (("state_dicts", "*state_dict*"), ("pruning_metadata", "*metadata*")):
        (tmp_path / kind).mkdir()
        for file in list(tmp_path.glob(pattern + ".pth")):
            file.rename(tmp_path / kind / file.name)
    assert len(import_supernet(tmp_path, config={"heads": 6}).supernet.space.axes[0].choices) == 3
    for file in (tmp_path / "pruning_metadata").iterdir():
        file.rename(tmp_path / "state_dicts" / file.name)
    for file in sorted((tmp_path / "state_dicts").iterdir()):
        assert len(import_supernet(file, config={"heads": 6}).stored) == 3


def test_a_level_alone_is_a_network(tmp_path: Path) -> None:
    _, states, _ = write_vit(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    name = "Vit_b_16_Rebuilt_Level_2_state_dict_tiny.pth"
    (tmp_path / name).rename(alone / name)
    for path in (alone, alone / name):
        found = import_supernet(path, config={"heads": 3})

        def run(number: int, x: Tensor) -> Tensor:
            return layout.run_vit(layout.double(states[1]), 3, x)

        assert max(differences(found, run, 16)) <= 1e-12


def torchvision_vgg(plan: str, norm: bool) -> torch.nn.Module:
    """Torchvision's VGG with narrow layers; its own classifier would hold 100 M values."""
    cfg = [8 if item == "C" else "M" for item in plan]
    with torch.device("meta"):
        net = VGG(make_layers(cfg, batch_norm=norm), num_classes=5, init_weights=False)  # type: ignore[arg-type]
        for i, (into, out) in zip((0, 3, 6), ((8 * 49, 12), (12, 12), (12, 5)), strict=True):
            net.classifier[i] = torch.nn.Linear(into, out)
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.2, generator=generator)
        else:
            tensor.zero_()
    return net


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "basic": lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5),
    "bottleneck": lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5),
    "vgg": lambda: torchvision_vgg("CMCMCCM", False),
    "vgg_bn": lambda: torchvision_vgg(layout.VGG16, True),
}


@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_torch_pruning(tmp_path: Path, name: str, size: int) -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    net = NETWORKS[name]()
    file = tmp_path / "Vit_b_16_Core_Level_1_state_dict_x.pth"
    torch.save(net.state_dict(), file)
    x = torch.randn(1, 3, size, size)
    macs, params = torch_pruning.utils.count_ops_and_params(net, x)
    found = import_supernet(file, format="elastoformer", config={"image_size": size})
    assert found.official is not None
    spec = found.supernet.space.max()
    assert found.official(spec) == {"macs": macs, "params": params}
    with torch.no_grad():
        got, wanted = extract(found.supernet, spec).module(x), net.eval()(x)
        assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def refused(path: Path, config: dict[str, object], what: str) -> UserError:
    with pytest.raises(UserError, match=what) as caught:
        import_supernet(path, format="elastoformer", config=config)
    return caught.value


def test_heads_must_be_told(tmp_path: Path) -> None:
    write_vit(tmp_path)
    assert "heads=official" in refused(tmp_path, {}, "not stored").fix
    refused(tmp_path, {"heads": 5}, "5 heads do not divide the query width of level 1, 12")
    refused(tmp_path, {"heads": [6, 6]}, "2 numbers, but there are 3 levels")
    refused(tmp_path, {"heads": "six"}, "heads")
    found = import_supernet(tmp_path, config={"heads": "official"})
    assert found.notes[0] == "Heads of each level: 12, 6, 12, as the original code guesses."
    with pytest.raises(UserError, match="None of 6, 8, 10 and 12"):
        guessed_heads(7)


def test_files_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    arch, states, kept = write_vit(tmp_path)
    heads = {"heads": 6}
    layout.write(tmp_path, arch, states, kept, name="other")
    assert "experiment=" in refused(tmp_path, heads, "2 experiments: other, tiny").fix
    refused(tmp_path, {**heads, "experiment": "tinny"}, 'an experiment "tinny"')
    found = import_supernet(tmp_path, config={**heads, "experiment": "tiny"})
    assert all("tiny" in name for name in found.stored)
    for file in tmp_path.glob("*other*"):
        file.unlink()
    second = tmp_path / "tiny_pruning_metadata_Level_2.pth"
    second.rename(tmp_path / "kept")
    refused(tmp_path, heads, "lacks the pruning metadata of level 2")
    (tmp_path / "kept").rename(second)
    level = tmp_path / "Vit_b_16_Rebuilt_Level_3_state_dict_tiny.pth"
    level.rename(tmp_path / "kept")
    refused(tmp_path, heads, "lacks the state dict of level 3")
    (tmp_path / "kept").rename(level)
    torch.save(states[1], tmp_path / "again_Rebuilt_Level_2_state_dict_tiny.pth")
    refused(tmp_path, heads, "twice")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, heads, "holds no levels")


def test_metadata_that_is_wrong_is_refused(tmp_path: Path) -> None:
    write_vit(tmp_path)
    file = tmp_path / "tiny_pruning_metadata_Level_3.pth"
    right = torch.load(file, weights_only=True)
    layer = "vit.encoder.layer.0.intermediate.dense"

    def change(kind: str, edit: Callable[[Tensor], object]) -> None:
        table = {**right[kind], layer: edit(right[kind][layer])}
        torch.save({**right, kind: table}, file)

    kept = right["non_pruned_index_out"][layer]
    change("pruned_index_out", lambda t: torch.cat([t[:-1], kept[:1]]))
    refused(tmp_path, {"heads": 6}, "lost and kept at once")
    change("pruned_index_out", lambda t: t[:-1])
    refused(tmp_path, {"heads": 6}, "missing or out of range")
    change("non_pruned_index_out", lambda t: torch.cat([t[:-1], torch.tensor([99])]))
    refused(tmp_path, {"heads": 6}, "missing or out of range")
    change("non_pruned_index_out", lambda t: t.float())
    refused(tmp_path, {"heads": 6}, "whole numbers")
    torch.save({**right, "non_pruned_index_out": 3}, file)
    refused(tmp_path, {"heads": 6}, "no non_pruned_index_in and non_pruned_index_out")
    torch.save([1, 2], file)
    refused(tmp_path, {"heads": 6}, "not pruning metadata")


def test_layers_of_one_group_must_agree(tmp_path: Path) -> None:
    write_vit(tmp_path)
    file = tmp_path / "tiny_pruning_metadata_Level_3.pth"
    tables = torch.load(file, weights_only=True)
    layer = "vit.encoder.layer.0.layernorm_before"
    lost, kept = (tables[f"{kind}_index_out"] for kind in ("pruned", "non_pruned"))
    lost[layer][0], kept[layer][0] = kept[layer][0].clone(), lost[layer][0].clone()
    torch.save(tables, file)
    refused(tmp_path, {"heads": 6}, "belong together")


def test_settings_that_contradict_the_files_are_refused(tmp_path: Path) -> None:
    write_vit(tmp_path)
    refused(tmp_path, {"heads": 6, "num_classes": 7}, "num_classes is set to 7, but .* has 5")
    assert refused(tmp_path, {"heads": 6, "head": 6}, 'no setting "head"').fix.endswith('"heads"?')
    refused(tmp_path, {"heads": 6, "norm_eps": "x"}, "norm_eps is 'x'")
    assert import_supernet(tmp_path, config={"heads": 6, "num_classes": 5}) is not None


def test_levels_of_different_networks_are_refused(tmp_path: Path) -> None:
    write_vit(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, states, _ = write_vit(other, depth=1)
    torch.save(states[1], tmp_path / "Vit_b_16_Rebuilt_Level_2_state_dict_tiny.pth")
    refused(tmp_path, {"heads": 6}, "in more than widths")


def test_files_of_others_are_not_claimed(tmp_path: Path) -> None:
    path = tmp_path / "Core_Level_1_state_dict_x.pth"
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match="of no known family"):
        import_supernet(path, config={"heads": 6})
    refused(path, {"heads": 6}, "is no ViT with Hugging Face's names")


def test_levels_with_other_classes_or_kinds_are_refused(tmp_path: Path) -> None:
    _, states, _ = write_vit(tmp_path)
    file = tmp_path / "Vit_b_16_Rebuilt_Level_3_state_dict_tiny.pth"
    torch.save(states[2] | {"classifier.bias": torch.zeros(4)}, file)
    refused(tmp_path, {"heads": 6}, r"head.bias of level 3 has shape \(4,\)")
    weight = torch.zeros(6, 24)
    torch.save(states[2] | {"classifier.weight": weight, "classifier.bias": weight[:, 0]}, file)
    refused(tmp_path, {"heads": 6}, r"level 1 has shape \(5, 12\), .* needs \(6, 12\)")
    bias = states[2]["classifier.bias"].to(torch.int8)
    torch.save(states[2] | {"classifier.bias": bias}, file)
    refused(tmp_path, {"heads": 6}, "head.bias of level 3 holds values of type torch.int8")


def test_damaged_state_dicts_are_refused(tmp_path: Path) -> None:
    _, states, _ = write_vit(tmp_path)
    file = tmp_path / "Vit_b_16_Core_Level_1_state_dict_tiny.pth"
    name = "vit.encoder.layer.0.output.dense.weight"
    for change, what in (
        ({name: states[0][name][:-1]}, "disagree about the width of embed: 11 or 12"),
        ({name: states[0][name][0]}, "has 1 dimensions instead of 2"),
        ({"vit.more": torch.zeros(1)}, "does not know: vit.more"),
        ({"vit.embeddings.position_embeddings": torch.zeros(1, 12, 12)}, "no square"),
    ):
        torch.save(states[0] | change, file)
        refused(tmp_path, {"heads": 6}, what)
    torch.save({k: v for k, v in states[0].items() if k != name}, file)
    refused(tmp_path, {"heads": 6}, "lacks blocks.0.mlp.fc2.weight")
