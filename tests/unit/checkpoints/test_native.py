"""Our own files: complete, deterministic, and refused when they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from elastic_export.checkpoints import (
    load_descendant,
    load_supernet,
    save_descendant,
    save_supernet,
)
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.errors import CheckFailed, UserError
from elastic_export.families import get_family
from elastic_export.families.registry import family_config

VIT = {
    "image_size": 8,
    "patch_size": 4,
    "num_classes": 3,
    "width": [8, 16],
    "depth": [1, 2],
    "heads": [1, 2],
    "mlp_ratio": [2],
    "nm": ["2:4", "dense"],
}
RESNET = {
    "image_size": 32,
    "num_classes": 3,
    "stem": [8],
    "stages": [{"depth": [1, 2], "width": [16, 32], "expand": [0.25]}],
}


def make(family: str) -> Supernet:
    kind = get_family(family)
    raw = VIT if family == "vit" else RESNET
    return Supernet.create(kind, family_config(kind, raw), seed=3)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_supernet_comes_back_with_every_value(family: str, tmp_path: Path) -> None:
    net = make(family)
    save_supernet(net, tmp_path / "a.safetensors")
    again = load_supernet(tmp_path / "a.safetensors")
    assert again.space.fingerprint == net.space.fingerprint
    state = net.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(again.state_dict()[k], state[k]) for k in state)
    save_supernet(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_descendant_comes_back_and_computes_the_same(
    family: str, folded: bool, tmp_path: Path
) -> None:
    net = make(family)
    one = extract(net, net.space.min())
    if folded:
        fold_batchnorm(one.module, net.family.fold_pairs(one.module))
        one.folded = True
    save_descendant(one, tmp_path / "d.safetensors")
    again = load_descendant(tmp_path / "d.safetensors")
    x = torch.randn(2, *net.family.input_shape(net.config))
    with torch.no_grad():
        assert torch.equal(again.module(x), one.module(x))
    assert (again.genes, again.spec_id, again.patterns) == (one.genes, one.spec_id, one.patterns)
    assert not again.module.training


def test_a_claimed_pattern_that_does_not_hold_is_found(tmp_path: Path) -> None:
    net = make("vit")
    one = extract(net, net.space.max())
    one.patterns = {"blocks.0.mlp.fc1.weight": "2:4"}
    save_descendant(one, tmp_path / "d.safetensors")
    with pytest.raises(CheckFailed, match=r"blocks\.0\.mlp\.fc1\.weight should be 2:4"):
        load_descendant(tmp_path / "d.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    net = make("vit")
    with pytest.raises(UserError, match="There is no file"):
        load_supernet(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no label of this tool"):
        load_supernet(path)
    save_descendant(extract(net, net.space.min()), path)
    with pytest.raises(UserError, match="holds a descendant, where a supernet is needed"):
        load_supernet(path)
    whole = path.read_bytes()
    for end in (0, 7, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="not a complete safetensors file"):
            load_descendant(path)


@pytest.mark.parametrize(
    "label",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 1, "kind": "x"}',
        '{"version": 1, "kind": ["supernet"]}',
        '{"version": 1, "kind": "supernet", "family": 3, "config": {}}',
        '{"version": 1, "kind": "supernet", "family": "vit"}',
        '{"version": 1, "kind": "descendant", "family": "vit", "config": {}, "genes": {}}',
    ],
)
def test_a_file_that_misdescribes_itself(tmp_path: Path, label: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"elastic_export": label})
    for load in (load_supernet, load_descendant):
        with pytest.raises(UserError, match="says about itself is damaged"):
            load(path)


def test_names_of_damaged_files_are_fit_to_print(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = b'{"a\\u001b[2J":{"dtype":"F32","shape":[4],"data_offsets":[0,9]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(9))
    with pytest.raises(UserError) as told:
        load_supernet(path)
    assert told.value.what.isprintable()


def test_tensors_in_shared_memory_are_written_each(tmp_path: Path) -> None:
    """As they come out of files whose tensors are parts of one storage."""
    net = make("vit")
    one = extract(net, net.space.max(), copy=False)
    state = dict(one.module.named_parameters())
    state["blocks.0.norm1.weight"].data = state["blocks.0.norm2.weight"].data
    before = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
    save_descendant(one, tmp_path / "d.safetensors")
    again = load_descendant(tmp_path / "d.safetensors").module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
    assert again["blocks.0.norm1.weight"].data_ptr() != again["blocks.0.norm2.weight"].data_ptr()
