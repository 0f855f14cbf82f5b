"""BatchNorm recalibration equals torch's, and changes nothing else."""

import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import mega_hf.models.cifar_resnet
from mega_hf.weights.batchnorm import recalibrate_batchnorm, statistics_names

assert mega_hf.models.cifar_resnet.default_cfgs, "imported to register its names with timm"


def _model(arch="test_efficientnet", **arguments):
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=3, **arguments).eval().requires_grad_(False)


def _batches(rows=(7, 6)):
    torch.manual_seed(1)
    return [torch.randn(n, 3, 32, 32) for n in rows]


def test_recalibration_equals_torchs_cumulative_average():
    model, expected = _model(drop_rate=0.5), _model(drop_rate=0.5)
    for part in expected.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    update_bn([(batch,) for batch in _batches()], expected)
    found, theirs = recalibrate_batchnorm(model, model, _batches(), 1), expected.state_dict()
    assert set(found) == set(statistics_names(model)) and len(found) > 20
    for name, tensor in found.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-4, atol=1e-6), name
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_number_of_threads_does_not_matter():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = _model("cifar_resnet20").to(memory_format=torch.channels_last)
            batches = [batch.to(memory_format=torch.channels_last) for batch in _batches((40, 40))]
            found.append(recalibrate_batchnorm(model, model, batches, 1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())


def test_only_the_statistics_change():
    model = _model()
    first = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    first.momentum, counter = 0.25, first.num_batches_tracked
    kept = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name not in statistics_names(model)
    }
    entries = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    recalibrate_batchnorm(model, model, _batches(), 1)
    assert (
        first.momentum == 0.25 and first.num_batches_tracked is counter and not first._forward_hooks
    )
    assert not any(part.training for part in model.modules())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == entries, (
        "written in place"
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())


def test_nan_statistics_are_replaced_and_a_failure_leaves_the_model_in_order():
    model = _model()
    expected = recalibrate_batchnorm(model, model, _batches(), 1)
    next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d)).running_var.fill_(
        torch.nan
    )
    found = recalibrate_batchnorm(model, model, _batches(), 1)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    try:
        recalibrate_batchnorm(model, lambda _: 1 / 0, _batches(), 1)
    except ZeroDivisionError:
        assert not any(part.training for part in model.modules())


def test_a_model_without_batchnorm_has_nothing_to_recalibrate():
    model = timm.create_model("test_vit", num_classes=3).eval()
    assert statistics_names(model) == []
