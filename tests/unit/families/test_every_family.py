"""What holds for every family: extraction equals an independent reference, and stays in bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from elastic_export.elastic import extract, has_batchnorm, recalibrate
from elastic_export.elastic.fold import fold_batchnorm
from elastic_export.elastic.macs import count_macs
from elastic_export.space import Spec


def specs(case: Any, n: int = 20) -> list[Spec]:
    """Smallest, largest and ``n`` random specs."""
    space = case.supernet.space
    rng = np.random.default_rng(5)
    return [space.min(), space.max(), *(space.sample(rng) for _ in range(n))]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


def test_extracted_equals_timm_masked_to_the_spec_and_costs_what_is_said(exact: Any) -> None:
    net, some = exact.supernet, specs(exact)
    costs = net.costs(some)
    for i, spec in enumerate(some):
        module = extract(net, spec).module
        with torch.no_grad():
            wanted = exact.reference(spec)(exact.images)
            assert error(module(exact.images), wanted) <= 1e-10, spec
        assert costs.params[i] == sum(p.numel() for p in module.parameters())
        if i < 8:  # Extraction counts each skeleton too, and raises where the space says otherwise.
            counted = count_macs(module.float(), net.family.input_shape(net.config))
            assert costs.macs[i] == counted.total


def test_float32_stays_within_the_stated_tolerance(case: Any) -> None:
    for spec in specs(case, 5):
        with torch.no_grad():
            got = extract(case.supernet, spec).module(case.images)
            assert error(got, case.reference(spec)(case.images)) <= 1e-5, spec


def test_the_active_network_is_the_extracted_one(case: Any) -> None:
    for spec in specs(case, 6):
        with torch.no_grad():
            active = case.supernet(spec, case.images)
            assert torch.equal(active, extract(case.supernet, spec).module(case.images))


def test_extraction_copies(case: Any) -> None:
    spec = case.supernet.space.max()
    module = extract(case.supernet, spec).module
    with torch.no_grad():
        before = module(case.images)
        for parameter in case.supernet.parameters():
            parameter.zero_()
        assert torch.equal(module(case.images), before)


def test_gradients_land_in_the_declared_support_alone(case: Any) -> None:
    net = case.supernet
    for spec in specs(case, 6):
        for parameter in net.parameters():
            parameter.grad = None
        net.train()(spec, case.images).square().sum().backward()
        support: dict[str, torch.Tensor] = {}
        for rule in net.activate(spec).rules.values():
            for source, mask in rule.support(net.store.tensors).items():
                support[source] = support.get(source, torch.zeros_like(mask)) | mask
        for name, parameter in net.named_parameters():
            touched = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            inside = support.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            assert (touched[~inside] == 0).all(), (name, spec)
        used = [n for n, p in net.named_parameters() if p.grad is not None]
        assert len(used) == len(support.keys() & dict(net.named_parameters()).keys())


def test_a_train_step_moves_the_store_as_it_moves_the_plain_module(case: Any) -> None:
    net = case.supernet
    for spec in specs(case, 3):
        module = extract(net, spec).module.train()
        for parameter in net.parameters():
            parameter.grad = None
        plain = module(case.images)
        plain.square().sum().backward()
        net.train()(spec, case.images).square().sum().backward()
        rules = net.activate(spec).rules
        gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        for name, parameter in module.named_parameters():
            got = rules[name].read(gradients)
            assert torch.allclose(got, parameter.grad, rtol=1e-4, atol=1e-6), name


def test_batchnorm_statistics_of_a_train_step_land_in_the_store(case: Any) -> None:
    net = case.supernet
    if not net.store.buffers:
        assert net.family.name in ("vit", "convnext", "vgg")
        return
    spec = specs(case, 1)[-1]
    module = extract(net, spec).module.train()
    untouched = {n: t.clone() for n, t in net.store.buffers.items()}
    module(case.images)
    net.train()(spec, case.images)
    rules = net.activate(spec).rules
    for name, buffer in module.named_buffers():
        assert torch.allclose(rules[name].read(net.store.tensors), buffer, atol=1e-6), name
        outside = ~rules[name].support(net.store.tensors)[name]
        assert torch.equal(net.store.buffers[name][outside], untouched[name][outside])
    moved = [n for n, t in net.store.buffers.items() if not torch.equal(t, untouched[n])]
    assert moved


def test_layout_covers_every_tensor_and_its_groups_move_together(case: Any) -> None:
    net = case.supernet
    layout = net.family.layout(net.config)
    for spec in specs(case, 6):
        sizes: dict[str, set[int]] = {}
        skeleton = net.activate(spec).skeleton
        for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()):
            assert len(layout[name]) == tensor.dim(), name
            for dim, size in zip(layout[name], tensor.shape, strict=True):
                if dim is not None:
                    sizes.setdefault(dim.group, set()).add(size // dim.blocks)
        assert {group for group, found in sizes.items() if len(found) > 1} == set()


def test_recalibrated_statistics_are_the_mean_over_batches(case: Any) -> None:
    module = extract(case.supernet, case.supernet.space.min()).module
    if not has_batchnorm(module):
        assert recalibrate(module, []) == 0.0
        return
    generator = torch.Generator().manual_seed(9)
    batches = [torch.randn(4, *case.images.shape[1:], generator=generator) for _ in range(3)]
    first = next(m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    handle = first.register_forward_hook(lambda m, i, o: seen.append(i[0].mean((0, 2, 3))))
    assert recalibrate(module, batches) > 0
    handle.remove()
    assert torch.allclose(first.running_mean, torch.stack(seen).mean(0), atol=1e-5)
    assert not first.training
    with torch.no_grad():
        alone = module(batches[0][:1])
        assert torch.allclose(alone, module(batches[0])[:1], atol=1e-4)


def test_folding_keeps_the_function(exact: Any) -> None:
    net = exact.supernet
    for spec in specs(exact, 3):
        module = extract(net, spec).module
        with torch.no_grad():
            before = module(exact.images)
            fold_batchnorm(module, net.family.fold_pairs(module))
            assert error(module(exact.images), before) <= 1e-10
        assert not has_batchnorm(module)


def test_skeletons_have_no_memory_and_run_no_initialisers(case: Any) -> None:
    net = case.supernet
    skeleton = net.family.skeleton(net.config, net.space.max())
    tensors = [*skeleton.parameters(), *skeleton.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    rng = torch.get_rng_state()
    net.family.skeleton(net.config, net.space.min())
    assert torch.equal(torch.get_rng_state(), rng)


def test_starting_values_are_a_function_of_the_seed(case: Any) -> None:
    net = case.supernet
    a, b, c = (type(net).create(net.family, net.config, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) and torch.isfinite(a[k]).all() for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
