"""Networks by timm's name: ``timm:NAME`` as a checkpoint, and ``arch`` beside a file.

Where a state dict leaves something open (heads, eps, activation), timm's own network settles it:
both networks get the same random weights, and their logits must agree.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elastic_export.checkpoints.plain.names import Named, finish, supernet_of
from elastic_export.checkpoints.plain.names_timm import from_timm
from elastic_export.checkpoints.reader import Imported, Reader, Source
from elastic_export.checkpoints.readers import register_reader
from elastic_export.checkpoints.safe import StateDict
from elastic_export.elastic import Supernet
from elastic_export.errors import UserError, did_you_mean

__all__ = ["TimmModelReader", "is_model_name", "model_identity", "settings_of"]

_PREFIX = "timm:"
_PRETRAINED = "?pretrained"
_SEED = 0
# Float32 rounding of the deepest networks stays below; the tanh form of GELU does not.
_TOLERANCE = 2e-5
_FAMILIES = {
    "VisionTransformer": "vit",
    "VisionTransformerDistilled": "vit",
    "SwinTransformer": "swin",
    "ResNet": "resnet",
    "VGG": "vgg",
    "ConvNeXt": "convnext",
}
_LAST = {"vit": "head", "swin": "head", "resnet": "fc", "convnext": "head.fc"}


def is_model_name(path: Path) -> bool:
    """Whether a path is really ``timm:NAME`` or ``timm:NAME?pretrained``."""
    return str(path).startswith(_PREFIX)


def model_identity(path: Path) -> str:
    """What ``timm:NAME`` means, for cache keys: the weights depend on both versions."""
    import timm

    return f"{path} timm {timm.__version__} torch {torch.__version__}"


@register_reader
class TimmModelReader(Reader):
    """``timm:NAME`` makes a network with random weights, ``timm:NAME?pretrained`` a trained one."""

    name = "timm-model"
    system = "a network of timm.create_model"

    def claims(self, source: Source) -> bool:
        """Names, which are not files."""
        return is_model_name(source.path)

    def read(self, source: Source) -> Imported:
        """Create the network, take its tensors, and compare logits with timm's.

        Raises:
            UserError: timm has no such network, no family builds it, or the weights cannot be had.
        """
        if not is_model_name(source.path):
            raise UserError(
                f"{source.path} is a file, not timm:NAME.",
                "Leave the format out, or set it to timm.",
            )
        name = str(source.path).removeprefix(_PREFIX)
        trained = name.endswith(_PRETRAINED)
        name = name.removesuffix(_PRETRAINED)
        options = {} if trained else _options(source)
        model: Any = create(name, pretrained=trained, **options)
        settings = _settings(name, model)
        _check(name, model, settings)
        tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        size = _input_size(model)
        known_size = source.config.get("image_size", size)
        named = from_timm(Source(source.path, {"image_size": known_size}), tensors)
        named.known |= settings
        if named.family not in ("vit", "swin"):
            named.assumed["image_size"] = size
        named.notes.append(
            f"timm's pretrained weights {model.pretrained_cfg.get('tag') or ''}".rstrip() + "."
            if trained
            else f"The weights are random (seed {_SEED}), not trained: timm:{name}{_PRETRAINED} "
            "fetches trained ones."
        )
        return finish(source, StateDict(tensors, "", ("",), ()), named, self.name)


def settings_of(arch: str, named: Named) -> dict[str, Any]:
    """Family settings of timm's network ``arch``, whose tensors ``named`` must be.

    Args:
        arch: As ``timm.create_model`` takes it; classes and image size are those of ``named``.
        named: The tensors of a file. What its origin has otherwise (``assumed``) stays.

    Raises:
        UserError: timm has no such network, no family builds it, or its shapes are others.
    """
    options: dict[str, Any] = {}
    last = named.tensors.get(f"{_LAST.get(named.family, 'classifier.6')}.weight")
    if last is not None and last.dim() == 2:
        options["num_classes"] = last.shape[0]
    size = _side_of(named)
    if size is not None and _takes_size(arch):
        options["img_size"] = size
    model = create(arch, pretrained=False, **options)
    settings = _settings(arch, model)
    theirs = from_timm(Source(Path(f"{_PREFIX}{arch}"), {}), model.state_dict())
    if theirs.family != named.family:
        raise UserError(
            f"The file holds a {named.family}, but timm's {arch} is a {theirs.family}.",
            "Correct arch.",
        )
    for key in sorted(theirs.tensors.keys() | named.tensors.keys()):
        shapes = [
            tuple(t[key].shape) if key in t else None for t in (named.tensors, theirs.tensors)
        ]
        if shapes[0] != shapes[1] and not key.endswith("num_batches_tracked"):
            found, wanted = ("missing" if shape is None else shape for shape in shapes)
            raise UserError(
                f"The file is not a {arch}: {key} is {found} there and {wanted} in timm's network.",
                "Correct arch, or leave it out and give heads.",
            )
    _check(arch, model, settings)
    return {key: value for key, value in settings.items() if key not in named.assumed}


def create(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Make timm's network in eval mode; random weights are a function of the name alone.

    Raises:
        UserError: timm has no such network, or no family builds it, or there are no weights.
    """
    import timm

    if not timm.is_model(name):
        known = did_you_mean(name, timm.list_models()) if name else ""
        raise UserError(
            f'timm {timm.__version__} has no network "{name}".',
            known if len(known) < 200 and known else "timm.list_models() lists the names.",
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm and the hub raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if pretrained:
            raise UserError(
                f"timm could not fetch the weights of {name}: {reason}",
                f"Check the connection, or fetch the file elsewhere and give its path with "
                f"--set arch={name}.",
            ) from error
        raise UserError(
            f"timm cannot make {name} with {options}: {reason}", "Correct the settings."
        ) from error
    if type(model).__name__ not in _FAMILIES:
        raise UserError(
            f"timm's {name} is a {type(model).__name__}, which no family builds.",
            f"Networks of timm that are read: {', '.join(sorted(set(_FAMILIES)))}.",
        )
    return model.eval()


def _side_of(named: Named) -> int | None:
    """The image size that a file's tensors tell; DeiT's extra tokens do not change it."""
    positions, patches = (named.tensors.get(n) for n in ("pos_embed", "patch_embed.proj.weight"))
    if named.family == "vit" and positions is not None and positions.dim() == 3:
        return math.isqrt(positions.shape[1]) * patches.shape[-1] if patches is not None else None
    return named.known.get("image_size")


def _options(source: Source) -> dict[str, Any]:
    """Settings that change the network timm makes."""
    names = {"num_classes": "num_classes", "in_chans": "in_chans"}
    given = {names[k]: v for k, v in source.config.items() if k in names and isinstance(v, int)}
    size = source.config.get("image_size")
    name = str(source.path).removeprefix(_PREFIX)
    if isinstance(size, int) and _takes_size(name):
        given["img_size"] = size
    return given


def _takes_size(name: str) -> bool:
    import timm

    if not timm.is_model(name):
        return False
    module = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    return module in ("vision_transformer", "deit", "swin_transformer")


def _input_size(model: nn.Module) -> int:
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or model.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    return int(size[0])


def _settings(name: str, model: Any) -> dict[str, Any]:
    """What names and shapes do not tell; the check of the logits covers the rest."""
    family = _FAMILIES[type(model).__name__]
    if family == "vit":
        if not all(hasattr(block, "attn") for block in model.blocks):
            raise UserError(
                f"timm's {name} has blocks that family vit does not build.",
                "Use a network with attention and MLP one after the other.",
            )
        norm = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
        found = {"heads": (model.blocks[0].attn.num_heads,), "norm_eps": getattr(norm, "eps", 1e-6)}
        if getattr(model, "global_pool", "token") not in ("token", "avg"):
            raise UserError(
                f"timm's {name} pools by {model.global_pool}, which family vit does not build.",
                "Use a network that pools by token or avg.",
            )
        return found
    if family == "swin":
        return {"norm_eps": getattr(model.norm, "eps", 1e-5), "image_size": _input_size(model)}
    if family == "convnext":
        return {
            "norm_eps": getattr(model.stem[-1], "eps", 1e-6),
            "head_norm_eps": getattr(getattr(model.head, "norm", None), "eps", 1e-6),
        }
    return {}


def _check(name: str, model: nn.Module, settings: dict[str, Any]) -> None:
    """Compare logits on random weights, which show every part; the model's own come back."""
    size = _input_size(model)
    saved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            # Large enough that every activation is used where it is curved.
            spread = 1.4 * tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2
            tensor.uniform_(-1.7 * spread, 1.7 * spread, generator=generator)
            if tensor.dim() == 1 and key.endswith((".weight", ".gamma")):
                tensor.add_(1.0)
    source = Source(Path(f"{_PREFIX}{name}"), {"image_size": size})
    try:
        supernet = _supernet(source, model.state_dict(), settings)
    except UserError as error:
        raise UserError(
            f"timm's {name} has parts that no family builds: {error.what}",
            "Use another network of its kind.",
        ) from error
    image = torch.randn(1, *supernet.family.input_shape(supernet.config), generator=generator)
    with torch.no_grad():
        wanted = model(image)
        found = supernet.eval()(supernet.space.max(), image)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    model.load_state_dict(saved)
    if not apart <= _TOLERANCE:
        raise UserError(
            f"timm's {name} computes something else than family {supernet.family.name}: the logits "
            f"differ by {apart:.0e} of the largest.",
            "Its activation, norm or pooling is none that the family builds; use another network.",
        )


def _supernet(source: Source, state: dict[str, Tensor], settings: dict[str, Any]) -> Supernet:
    named = from_timm(source, state)
    wanted = {**source.config, **named.known, **settings}
    if named.family == "vit":
        wanted.pop("image_size")
    return supernet_of(source, named.family, named.family, named.tensors, wanted)
