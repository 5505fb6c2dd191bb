"""ELSA's files: order of lists, subnets by name, what is refused; on networks made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_export.checkpoints import import_supernet
from elastic_export.checkpoints.elsa import ElsaReader
from elastic_export.checkpoints.reader import Imported, Source
from elastic_export.elastic import Supernet, extract
from elastic_export.elastic.rules_windows import relative_position_index, shifted_window_mask
from elastic_export.errors import UserError
from elastic_export.families import get_family
from elastic_export.families.swin import SwinConfig, SwinStage
from elastic_export.families.vit import VitConfig
from elastic_export.space import Spec

VIT = VitConfig(
    image_size=30,
    patch_size=6,
    in_chans=1,
    num_classes=3,
    width=(24,),
    depth=(2,),
    heads=(2,),
    mlp_ratio=(2.5,),
    qkv_bias=False,
)
SWIN = SwinConfig(
    image_size=36,
    patch_size=3,
    num_classes=4,
    width=(8,),
    window=6,
    stages=(SwinStage(depth=(2,), heads=(2,)), SwinStage(depth=(1,), heads=(4,))),
    qk_scale=0.5,
    ape=True,
    patch_norm=False,
)
ORDER = ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2")
PAIRS = [[n, 4] for n in (1, 4, 2, 3, 2, 1, 4, 2, 1, 1, 1, 2)]


def theirs(kind: str) -> dict[str, Any]:
    """ELSA's configuration of a network."""
    layers = 8 if kind == "deit" else 12
    init = PAIRS[:layers]
    sizes: dict[str, Any] = {
        "PATCH_SIZE": 6,
        "IN_CHANS": 1,
        "EMBED_DIM": 24,
        "DEPTH": 2,
        "NUM_HEADS": 2,
        "MLP_RATIO": 2.5,
        "QKV_BIAS": False,
    }
    if kind == "swin":
        sizes = {
            "PATCH_SIZE": 3,
            "IN_CHANS": 3,
            "EMBED_DIM": 8,
            "DEPTHS": [2, 1],
            "NUM_HEADS": [2, 4],
            "WINDOW_SIZE": 6,
            "MLP_RATIO": 4,
            "QKV_BIAS": True,
            "QK_SCALE": 0.5,
            "APE": True,
            "PATCH_NORM": False,
        }
    return {
        "BASE": [""],
        "MODEL": {"TYPE": f"sparse_{kind}", "NAME": kind, kind.upper(): sizes},
        "DATA": {"IMG_SIZE": 30 if kind == "deit" else 36},
        "NAS": {
            "SEARCH_SPACE": [[[1, 4], [2, 4], [4, 4]]] * layers,
            "INIT_CONFIG": init,
            "TEST_CONFIG": {"TEST_SUBNET": [[2, 4]] * layers, "UNIFORM_SUBNETS": [[3, 4]]},
            "SAMPLE_POLICY": {"FILTERED_POLICY": "None"},
        },
    }


def names(kind: str) -> list[str]:
    blocks = ["blocks.0", "blocks.1"]
    if kind == "swin":
        blocks = ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
    return [f"{block}.{name}" for block in blocks for name in ORDER]


def weights(kind: str) -> dict[str, Tensor]:
    """A state dict as ELSA registers it: proj before qkv, with the tables of a Swin."""
    config = VIT if kind == "deit" else SWIN
    family = get_family("vit" if kind == "deit" else "swin")
    supernet = Supernet.create(family, config, seed=3)
    generator = torch.Generator().manual_seed(4)
    state = {
        name: tensor + torch.randn(tensor.shape, generator=generator) * 0.2
        for name, tensor in supernet.state_dict().items()
    }
    ordered: dict[str, Tensor] = {}
    for name in state:
        if ".attn.qkv." in name:
            proj = name.rpartition(".attn.")[0] + ".attn.proj"
            ordered |= {f"{proj}.{leaf}": state[f"{proj}.{leaf}"] for leaf in ("weight", "bias")}
        ordered.setdefault(name, state[name])
    if kind == "swin":
        for s, b in SWIN.places():
            table = f"layers.{s}.blocks.{b}.attn.relative_position_index"
            ordered[table] = relative_position_index(SWIN.window_of(s))
        ordered["layers.0.blocks.1.attn_mask"] = shifted_window_mask(12, 6, 3)
    return ordered


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write ``{"model": ..., **others}``."""

    def written(state: Mapping[str, Tensor], **others: Any) -> Path:
        path = tmp_path / "ckpt_epoch_3.pth"
        torch.save({"model": dict(state), **others}, path)
        return path

    return written


def read(path: Path, **config: Any) -> Imported:
    return import_supernet(path, config=config)


def largest_of_each(weight: Tensor, n: int, m: int) -> Tensor:
    """An independent mask: a value stays if fewer than n of its group are larger."""
    groups = weight.abs().reshape(len(weight), -1, m)
    rank = (groups[..., None, :] > groups[..., :, None]).sum(-1)
    return (rank < n).reshape(weight.shape)


@pytest.mark.parametrize("kind", ["deit", "swin"])
@pytest.mark.parametrize("where", ["stored", "given"])
def test_lists_begin_with_proj(kind: str, where: str, write: Write) -> None:
    state, config = weights(kind), theirs(kind)
    found = (
        read(write(state, epoch=3, config=config, optimizer={"state": {}}))
        if where == "stored"
        else read(write(state), **config)
    )
    assert found.format == "elsa"
    assert found.used == "model"
    net = found.supernet
    module = extract(net, net.spec("init_config")).module
    got = dict(module.named_parameters())
    for layer, (n, m) in zip(names(kind), PAIRS, strict=False):
        weight = state[f"{layer}.weight"]
        assert torch.equal(got[f"{layer}.weight"], weight * largest_of_each(weight, n, m)), layer
    buffers = {name for name in state if name.endswith(("_index", "attn_mask"))}
    beside = {"epoch", "config", "optimizer"} if where == "stored" else set()
    assert found.ignored.keys() == buffers | beside


@pytest.mark.parametrize("kind", ["deit", "swin"])
def test_subnets_have_names(kind: str, write: Write) -> None:
    layers = len(names(kind))
    subnet = [[3, 4], *[[4, 4]] * (layers - 1)]
    found = read(write(weights(kind), config=theirs(kind)), subnet=subnet)
    net = found.supernet
    known = set(net.family.named_specs(net.config))
    assert known >= {"init_config", "test_subnet", "subnet", "dense", "uniform_2_4", "uniform_3_4"}
    first = f"{names(kind)[0]}.nm"
    assert net.spec("subnet")[first] == "3:4"
    assert net.spec("dense") == net.space.max()
    assert net.spec("uniform_2_4") == net.spec("test_subnet")
    assert net.space.describe()[first] == ["1:4", "2:4", "3:4", "dense"]
    again = type(net.config).model_validate(net.config.model_dump(mode="json"))
    assert again == net.config


@pytest.mark.parametrize("kind", ["deit", "swin"])
def test_a_materialised_file_keeps_its_patterns(kind: str, write: Write) -> None:
    state, config = weights(kind), theirs(kind)
    for layer, (n, m) in zip(names(kind), PAIRS, strict=False):
        state[f"{layer}.weight"] *= largest_of_each(state[f"{layer}.weight"], n, m)
    dense = extract(*_chosen(read(write(weights(kind)), **config), "init_config")).module
    found = read(write(state), **config)
    assert "already hold a pattern" in " ".join(found.notes)
    x = torch.randn(2, *found.supernet.family.input_shape(found.supernet.config))
    for name in ("init_config", "max"):
        one = extract(*_chosen(found, name))
        with torch.no_grad():
            assert torch.equal(one.module(x), dense(x))
        assert one.patterns[f"{names(kind)[0]}.weight"] == "1:4"
    assert "dense" not in found.supernet.family.named_specs(found.supernet.config)


def _chosen(found: Imported, name: str) -> tuple[Supernet, Spec]:
    return found.supernet, found.supernet.spec(name)


def test_a_dense_network_needs_no_lists(write: Write) -> None:
    config = theirs("deit")
    del config["NAS"]
    config["MODEL"]["TYPE"] = "deit"
    net = read(write(weights("deit")), **config).supernet
    assert net.space.min() == net.space.max()
    assert net.spec("dense") == net.space.max()


def test_our_own_patterns_add_to_theirs(write: Write) -> None:
    path = write(weights("deit"))
    own = {"blocks.0.attn.qkv": ["1:8"]}
    net = read(path, heads=[2], nm=["1:2", "dense"], nm_of=own).supernet
    assert net.space.describe()["blocks.0.attn.qkv.nm"] == ["1:8", "1:2", "dense"]
    assert net.space.describe()["blocks.1.attn.qkv.nm"] == ["1:2", "dense"]


def test_a_swin_file_alone_tells_all_but_its_scale(write: Write) -> None:
    found = read(write(weights("swin")), qk_scale=0.5)
    assert isinstance(found.supernet.config, SwinConfig)
    assert found.supernet.config.model_copy(update={"nm_of": {}, "specs": {}}) == SWIN.model_copy(
        update={
            "stages": tuple(
                stage.model_copy(update={"head_dim": SWIN.dim_of_head(s)})
                for s, stage in enumerate(SWIN.stages)
            )
        }
    )
    assert "qk_scale" in " ".join(read(write(weights("swin"))).notes)


def test_who_is_claimed(write: Write, tmp_path: Path) -> None:
    def claimed(path: Path, **config: Any) -> bool:
        return ElsaReader().claims(Source(path, config))

    state = weights("deit")
    assert claimed(write(state))
    timm = {name: state[name] for name in get_family("vit").stored(VIT).state_dict()}
    assert not claimed(write(timm))
    assert not claimed(write(dict(sorted(state.items()))))
    assert not claimed(write({"weight": torch.ones(2)}, config=[1], model_ema=3))
    assert claimed(write(timm, config=theirs("deit")))
    assert claimed(write(timm), **theirs("deit"))
    assert not claimed(tmp_path)


def _changed(kind: str, path: str, value: Any) -> dict[str, Any]:
    config = theirs(kind)
    *sections, key = path.split(".")
    place: Any = config
    for section in sections:
        place = place[section]
    place[key] = value
    return config


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("deit", "NAS.INIT_CONFIG", PAIRS[:7], "7 entries, but the network has 8 layers"),
        ("deit", "NAS.SEARCH_SPACE", [[[2, 4]]] * 48, "48 entries, but the network has 8"),
        ("deit", "NAS.INIT_CONFIG", [[5, 4]] * 8, r"no \[N, M\] with 0 < N <= M"),
        ("deit", "NAS.INIT_CONFIG", [2, 4], "2 entries, but"),
        ("deit", "NAS.INIT_CONFIG", "2:4", r"a list of \[N, M\] is wanted"),
        ("deit", "NAS.SEARCH_SPACE", [[2, 4]] * 8, r"no \[N, M\]"),
        ("deit", "NAS.SEARCH_SPACE", [[]] * 8, "candidates such as"),
        ("deit", "NAS.TEST_CONFIG.TEST_SUBNET", [[2, 4]], "TEST_SUBNET has 1 entries"),
        ("deit", "NAS.INIT_CONFIG", [[1, 5]] * 8, "multiples of its M"),
        ("deit", "NAS", [1], "where a section is wanted"),
        ("deit", "MODEL.TYPE", "sparse_swin", "tensors are those of a DEIT"),
        ("deit", "MODEL.TYPE", "clip_vit_large14_224", "MODEL.TYPE is clip"),
        ("deit", "MODEL.DEIT.NUM_HEADS", 5, "heads is 5"),
        ("deit", "MODEL.DEIT.DEPTH", 3, "DEPTH is 3 in the configuration, but .* has 2"),
        ("deit", "MODEL.DEIT.MLP_RATIO", 4.0, "MLP_RATIO is 4.0"),
        ("deit", "DATA.IMG_SIZE", 224, "IMG_SIZE is 224"),
        ("swin", "DATA.IMG_SIZE", 48, "IMG_SIZE is 48"),
        ("swin", "MODEL.SWIN.WINDOW_SIZE", 3, "WINDOW_SIZE is 3"),
        ("swin", "MODEL.SWIN.NUM_HEADS", [1, 2], r"NUM_HEADS is \[1, 2\]"),
        ("swin", "MODEL.SWIN.APE", False, "APE is False"),
        ("swin", "MODEL.SWIN.MLP_RATIO", "four", "where a number is wanted"),
        ("swin", "MODEL.SWIN.QK_SCALE", "big", "qk_scale"),
    ],
)
def test_configurations_of_other_networks(
    kind: str, path: str, value: Any, said: str, write: Write
) -> None:
    with pytest.raises(UserError, match=said):
        read(write(weights(kind)), **_changed(kind, path, value))


def test_two_configurations_must_agree(write: Write) -> None:
    path = write(weights("deit"), config=theirs("deit"))
    with pytest.raises(UserError, match=r"NUM_HEADS is 4 .* but 2 in the one stored"):
        read(path, **_changed("deit", "MODEL.DEIT.NUM_HEADS", 4))
    given = _changed("deit", "NAS.INIT_CONFIG", [[2, 4]] * 8)
    assert read(path, **given).supernet.spec("init_config")["blocks.0.attn.proj.nm"] == "2:4"


def test_heads_must_be_told(write: Write) -> None:
    with pytest.raises(UserError, match=r"heads is not stored .*NUM_HEADS"):
        read(write(weights("deit")))
    assert read(write(weights("deit")), heads=2).format == "elsa"
    with pytest.raises(UserError, match=r"heads is .*3"):
        read(write(weights("deit")), **theirs("deit"), heads=3)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("deit", {"image_size": 224}, "image_size is 224 in the settings"),
        ("deit", {"widht": 24}, "unknown key"),
        ("deit", {"subnet": [[2, 4]]}, "subnet has 1 entries"),
        ("deit", {"nm_of": {"blocks.7.attn.qkv": ["2:4"]}}, "no layer that can be sparse"),
        ("deit", {"nm": 3}, "not lists of patterns"),
        ("deit", {"nm": ["5:4"]}, "not a sparsity pattern"),
        ("deit", {"specs": 3}, "specs"),
        ("swin", {"window": 7}, "window is 7 in the settings"),
    ],
)
def test_settings_that_contradict_the_file(
    kind: str, settings: dict[str, Any], said: str, write: Write
) -> None:
    with pytest.raises(UserError, match=said):
        read(write(weights(kind)), **theirs(kind), **settings)


def test_tables_must_be_what_the_sizes_say(write: Write) -> None:
    for name in ("layers.0.blocks.1.attn_mask", "layers.1.blocks.0.attn.relative_position_index"):
        state = weights("swin")
        state[name] = state[name] + 1
        with pytest.raises(UserError, match="is not the table of windows of 6"):
            read(write(state), **theirs("swin"))


def test_tensors_that_are_missing_or_too_many(write: Write) -> None:
    state = weights("deit")
    with pytest.raises(UserError, match="unknown"):
        read(write({**state, "dist_head.weight": torch.ones(3, 24)}), **theirs("deit"))
    short = {name: t for name, t in state.items() if name != "blocks.1.mlp.fc1.weight"}
    with pytest.raises(UserError, match=r"no tensor blocks\.1\.mlp\.fc1"):
        read(write(short), **theirs("deit"))
    far = {**state, "blocks.99999999.mlp.fc1.weight": torch.ones(2, 2)}
    with pytest.raises(UserError, match="a block 99999999, but none before it"):
        read(write(far), **theirs("deit"))
    stacked = {**state, "blocks.0.mlp.fc1.weight": torch.ones(2, 60, 24)}
    with pytest.raises(UserError, match="separate weights for groups of candidates"):
        read(write(stacked), **theirs("deit"))
    with pytest.raises(UserError, match="neither the blocks of a DeiT nor those of a Swin"):
        read(write({"weight": torch.ones(2)}), **theirs("deit"))


def _affine(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    for i, layer in enumerate(names("swin")):
        for n in (1, 2, 4):
            prefix = f"{layer}.per_candidate_affine_modules.n{n}_m4"
            out = len(state[f"{layer}.weight"])
            state[f"{prefix}.alpha"] = torch.linspace(0.5, 1.5, out) + 0.1 * (i + n)
            state[f"{prefix}.beta"] = torch.linspace(-1, 1, out) * n
    return state


def test_affine_parts_of_one_subnet_become_weights(write: Write) -> None:
    state = _affine(weights("swin"))
    with pytest.raises(UserError, match=r"an affine part for each candidate .* subnet"):
        read(write(state), **theirs("swin"))
    subnet = [[1, 4], [2, 4], [4, 4]] * 4
    found = read(write(state), **theirs("swin"), subnet=subnet)
    net = found.supernet
    assert net.space.min() == net.space.max() == net.spec("subnet")
    got = dict(extract(net, net.space.max()).module.named_parameters())
    for layer, (n, m) in zip(names("swin"), subnet, strict=True):
        prefix = f"{layer}.per_candidate_affine_modules.n{n}_m4"
        alpha, beta = state[f"{prefix}.alpha"], state[f"{prefix}.beta"]
        weight = state[f"{layer}.weight"]
        masked = weight * largest_of_each(weight, n, m)
        x = torch.randn(3, weight.shape[1])
        wanted = alpha * (x @ masked.T + state[f"{layer}.bias"]) + beta
        made = x @ got[f"{layer}.weight"].T + got[f"{layer}.bias"]
        assert torch.allclose(made, wanted, atol=1e-5), layer
    with pytest.raises(UserError, match="none for 3:4"):
        read(write(state), **theirs("swin"), subnet=[[3, 4]] * 12)


def test_masks_that_elsa_rounds_are_told(write: Write) -> None:
    config = _changed("deit", "NAS.INIT_CONFIG", [[2, 3]] * 8)
    found = read(write(weights("deit")), **config)
    assert found.supernet.spec("init_config")["blocks.0.attn.proj.nm"] == "2:3"
    removed = int(3 * (1 - 2 / 3))
    assert ("keep one value more" in " ".join(found.notes)) == (removed != 1)
