"""Latency estimates of bundles and ONNX files, and fitting them to what a board measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from elastic_export.artifacts.digest import sha256_file
from elastic_export.config.fused_layer import FusedLayer
from elastic_export.config.result import LatencyEstimate
from elastic_export.config.target import Precision
from elastic_export.config.targets import ResolvedTarget, load_target
from elastic_export.engine.bundle import Bundle, load_bundle
from elastic_export.engine.bundle_manifest import read_manifest
from elastic_export.errors import ElasticExportError, UserError
from elastic_export.export.fused_layers import fused_layers, quantized_nodes
from elastic_export.measure.board_match import Wanted, is_surely, mismatches
from elastic_export.measure.device_fit import DeviceFit, Measurement
from elastic_export.measure.estimate import Basis, estimate
from elastic_export.measure.kept_fits import fitted_basis, learn
from elastic_export.measure.kernel_costs import TURING, Device, device_of
from elastic_export.measure.marks import SPOILT
from elastic_export.space.cost import hardware_density

__all__ = ["basis_for", "estimate_bundle", "estimate_latency", "fit_board", "learn_from"]


def estimate_latency(path: Path, target: str, precision: str | None = None) -> dict[str, Any]:
    """Estimate what a network would take on a device that is not here.

    Args:
        path: A bundle, or a plain FP32 file with static shapes.
        target: ``NAME[@SOFTWARE[:MODE]]``.
        precision: ``fp32``, ``fp16`` or ``int8``; all that the target runs unless given.

    Returns:
        ``how`` is ``"estimate"``. ``estimates`` maps a precision to what ``Estimate.to_json``
        gives; ``target``, ``basis`` (what the constants were fitted to), ``macs``,
        ``sparse_layers`` and ``notes`` hold for all.

    Raises:
        UserError: The target, the file or the precision cannot be estimated; says why.
        CheckFailed: A file of the bundle was changed.
    """
    resolved = load_target(target)
    device = device_of(resolved)
    precisions = _precisions(resolved, precision)
    bundle = load_bundle(path) if path.is_dir() else None
    layers = _layers(path if bundle is None else bundle.model("fp32"), resolved)
    basis = fitted_basis(device)
    forms = {one: _as_in(layers, bundle, one) for one in precisions}
    found = {one: estimate(form, device, one, basis) for one, form in forms.items()}
    notes = [f"Unverified figures of the target: {', '.join(device.unverified)}."]
    notes = notes if device.unverified else []
    if device.l2_mb == 0:
        notes.append("The target's cache is not known and counted as none.")
    if "fp32" in precisions and 70 <= (resolved.target.sm or 0) < 80:
        notes.append(
            "FP32 has no tensor cores there, which is not fitted: its estimate is two to four "
            "times too high."
        )
    sparse = max(sum(layer.sparse for layer in form) for form in forms.values())
    if sparse and not device.sparse:
        notes.append(f"{sparse} layers hold 2:4, which this device does not skip.")
    return {
        "how": "estimate",
        "path": str(path),
        "target": resolved.identity,
        "basis": basis.text,
        "macs": sum(layer.macs for layer in layers),
        "sparse_layers": sparse,
        "estimates": {name: result.to_json() for name, result in found.items()},
        "notes": notes,
    }


def basis_for(resolved: ResolvedTarget) -> tuple[Device, Basis] | None:
    """Return what estimates of a target stand on; None where it is not estimated.

    Raises:
        UserError: The fit that is kept for the target is damaged.
    """
    try:
        device = device_of(resolved)
    except UserError:
        return None
    return device, fitted_basis(device)


def estimate_bundle(folder: Path, resolved: ResolvedTarget) -> dict[str, LatencyEstimate]:
    """Estimate the files of a bundle that was just made.

    Args:
        folder: The bundle; its files are not compared with their digests again.
        resolved: Where they would run.

    Returns:
        Precision to estimate; nothing for a target that is not estimated, or without the plain
        file that tells the kernels.

    Raises:
        UserError: The fit that is kept for the target is damaged.
    """
    ground = basis_for(resolved)
    bundle = Bundle(folder, read_manifest(folder))
    if ground is None or "fp32" not in bundle.manifest.models:
        return {}
    device, basis = ground
    layers = _layers(bundle.model("fp32"), resolved)
    found: dict[str, LatencyEstimate] = {}
    for precision in resolved.flavours:
        if precision in bundle.manifest.models:
            one = estimate(_as_in(layers, bundle, precision), device, precision, basis)
            found[precision] = LatencyEstimate(
                ms=one.ms, low_ms=one.low_ms, high_ms=one.high_ms, basis=one.basis
            )
    return found


def fit_board(results: Sequence[Path], bundles: Sequence[Path], target: str) -> DeviceFit:
    """Fit a target to results of ``bench --on`` and keep it; later estimates use it.

    Args:
        results: RESULT.json files of the board's script, or what ``bench --on --json`` printed.
        bundles: The bundles that were measured; their layers are read here.
        target: What was measured, in full where it has power modes.

    Raises:
        UserError: A file is no such result, it was measured in another power mode or JetPack, or
            none of its models belongs to the bundles.
        CheckFailed: A file of a bundle was changed.
    """
    resolved = load_target(target)
    device = device_of(resolved)
    loaded = {bundle.manifest.name: bundle for bundle in map(load_bundle, bundles)}
    found: list[Measurement] = []
    for path in results:
        for document in _documents(path):
            _same_board(document, resolved, path)
            found += _measurements(document, loaded, resolved)
    if not found:
        raise UserError(
            f"No model of {', '.join(map(str, results))} counts for the bundles given.",
            "Give the bundles that were measured, unchanged; a measurement that did not settle or "
            "was throttled does not count.",
        )
    return learn(found, device)


def learn_from(document: Mapping[str, Any], bundles: Sequence[Bundle]) -> list[str]:
    """Fit the estimates of targets to what a board has just measured of their bundles.

    What says nothing of a target is passed over: another device, mode or release than its own (or
    one that the board does not tell), ONNX Runtime, figures that did not settle or are not those of
    the network, and targets that are not estimated.

    Args:
        document: The result of the board's script.
        bundles: What was measured.

    Returns:
        A sentence for each target whose later estimates change.
    """
    told = []
    for identity in dict.fromkeys(bundle.manifest.target for bundle in bundles):
        mine = {b.manifest.name: b for b in bundles if b.manifest.target == identity}
        try:
            resolved = load_target(identity)
            device = device_of(resolved)
            sure = is_surely(document["board"], Wanted.of_target(resolved))
            if not sure or _otherwise(document, resolved):
                continue
            found = _measurements(document, mine, resolved)
        except ElasticExportError:  # no profile here, or nothing that is estimated
            continue
        if not found:
            continue
        try:
            fitted = learn(found, device)
        except UserError as error:
            told.append(f"Estimates for {identity} stay as they were: {error.what}")
            continue
        told.append(
            f"Estimates for {identity} are now {fitted.basis.text}; the largest difference left is "
            f"{fitted.error:.0%}."
        )
    return told


def _measurements(
    document: Mapping[str, Any], bundles: Mapping[str, Bundle], resolved: ResolvedTarget
) -> list[Measurement]:
    """The models of a result that say something of their target."""
    layers: dict[str, list[FusedLayer]] = {}
    found = []
    for key, model in document["models"].items():
        name, _, precision = key.rpartition("/")
        bundle = bundles.get(name)
        if bundle is None or precision not in get_args(Precision) or not _counts(model):
            continue
        if model["sha256"] != sha256_file(bundle.model(precision)):
            continue
        if name not in layers:
            layers[name] = _layers(bundle.model("fp32"), resolved)
        one = cast("Precision", precision)
        figures = model.get("gpu_compute_ms") or model["latency_ms"]
        mine = _as_in(layers[name], bundle, one)
        found.append(Measurement(key, mine, one, float(figures["median"]), str(model["sha256"])))
    return found


def _precisions(resolved: ResolvedTarget, asked: str | None) -> list[Precision]:
    if asked is None:
        return list(resolved.flavours)
    if asked not in resolved.flavours:
        raise UserError(
            f"{resolved.identity} does not run {asked}.",
            f"Choose {' or '.join(resolved.flavours)}.",
        )
    return [one for one in resolved.flavours if one == asked]


def _layers(plain: Path, resolved: ResolvedTarget) -> list[FusedLayer]:
    return fused_layers(plain, turing=(resolved.target.sm or 0) >= TURING)


def _as_in(
    layers: list[FusedLayer], bundle: Bundle | None, precision: Precision
) -> list[FusedLayer]:
    """Take from a bundle what its file of a precision is: which layers are INT8, which hold 2:4.

    The kernels come from the plain FP32 file, which is dense where the others are sparse. Without a
    bundle shapes and the file's own weights decide, and so do shapes for INT8 in the form of ONNX
    Runtime's CPU, which says nothing of TensorRT's.
    """
    if bundle is None:
        return layers
    told = bundle.manifest
    sparse: set[str] | None = None
    if precision in told.descendant.get("sparse_files", ()):
        patterns = told.descendant.get("patterns", {}).items()
        sparse = {
            name.removesuffix(".weight") for name, kind in patterns if hardware_density(kind) < 1
        }
    quantized: set[str] = set()
    if precision == "int8" and "int8" in told.models and told.runtime.name != "onnxruntime":
        quantized = set(quantized_nodes(bundle.model("int8")))
    return [_formed(layer, sparse, quantized) for layer in layers]


def _formed(layer: FusedLayer, sparse: set[str] | None, quantized: set[str]) -> FusedLayer:
    news: dict[str, bool] = {}
    if sparse is not None:
        news["sparse"] = layer.eligible_2_4 and layer.name in sparse
    if quantized:
        news["int8"] = layer.name in quantized and layer.macs > 0
    return layer.model_copy(update=news) if news else layer


def _counts(model: Mapping[str, Any]) -> bool:
    """Tell whether a measurement says something of the target as it is named."""
    spoilt = SPOILT & set(model.get("flags") or ())
    return not model.get("error") and bool(model.get("settled")) and not spoilt


def _documents(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the results in a file: one board's, or those of several."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.", "Check the path.")
    try:
        data = json.loads(path.read_text())
        boards = data.get("boards")
        found = (
            [data] if boards is None else [b["result"] for b in boards.values() if "result" in b]
        )
        for document in found:
            for model in document["models"].values():
                if not model.get("error"):
                    float((model.get("gpu_compute_ms") or model["latency_ms"])["median"])
                    str(model["sha256"])
            dict(document["board"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no result of a measurement on a board.",
            "Give the RESULT.json of on_device.py, or what bench --on --json printed.",
        ) from error
    yield from found


def _same_board(document: Mapping[str, Any], resolved: ResolvedTarget, path: Path) -> None:
    """Refuse figures of another power mode, release or runtime: they would be kept wrongly."""
    other = _otherwise(document, resolved)
    if other:
        raise UserError(
            f"{path} was measured with {' and '.join(other)}, and {resolved.identity} is another "
            "target.",
            "Name the target that was measured, as NAME@SOFTWARE:MODE.",
        )
    if not is_surely(document["board"], Wanted.of_target(resolved)):
        raise UserError(
            f"{path} does not tell that its board is {resolved.identity}: device, JetPack or "
            "TensorRT, and power mode have to be known.",
            'See its "board"; a machine that tells them is measured with bench --on.',
        )


def _otherwise(document: Mapping[str, Any], resolved: ResolvedTarget) -> list[str]:
    """Name what a result was measured with that is not the target's."""
    found = mismatches(document["board"], Wanted.of_target(resolved))
    if any(model.get("runtime") == "onnxruntime" for model in document["models"].values()):
        found.append("ONNX Runtime")
    return found
