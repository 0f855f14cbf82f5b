"""The CIFAR ResNets of the paper; importing this module registers them with timm.

He et al., 2015, section 4.2: three stages of n blocks with 16, 32 and 64 channels on 32 x 32
images, 6 n + 2 layers; the paper's deepest has stages of unequal depth. Shortcuts that change
shape are projections (a 1 x 1 convolution and BatchNorm). Parameters bear the names of the public
CIFAR checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut; ReLU after the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, in_channels, H, W] to [rows, channels, H / stride, W / stride]."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class CifarResNet(nn.Module):
    """A residual network for small images, built as timm builds its own.

    Args:
        blocks: how many blocks each of the three stages has.
        num_classes: 0 leaves the classifier out.
        in_chans: color channels of an image.
        global_pool: `avg`, or empty to leave pooling and classifier out.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = 64
        self.global_pool = global_pool
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks[0], 1)
        self.layer2 = self._stage(16, 32, blocks[1], 2)
        self.layer3 = self._stage(32, 64, blocks[2], 2)
        self.fc: nn.Module = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm asks."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one, as timm asks."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.fc = nn.Linear(64, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to features: [rows, in_chans, H, W] to [rows, 64, H / 4, W / 4]."""
        return self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features to logits: [rows, 64, h, w] to [rows, num_classes]."""
        pooled = x.mean(dim=(2, 3)) if self.global_pool else x
        return pooled if pre_logits or not self.global_pool else self.fc(pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to logits: [rows, in_chans, H, W] to [rows, num_classes]."""
        return self.forward_head(self.forward_features(x))


_CFG: dict[str, Any] = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "fixed_input_size": False,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": MEAN,
    "std": STD,
    "first_conv": "conv1",
    "classifier": "fc",
}
_BLOCKS = {
    "cifar_resnet8": (1, 1, 1),
    "cifar_resnet20": (3, 3, 3),
    "cifar_resnet32": (5, 5, 5),
    "cifar_resnet44": (7, 7, 7),
    "cifar_resnet56": (9, 9, 9),
    "cifar_resnet110": (18, 18, 18),
    "cifar_resnet152_mega": (18, 37, 37),
}

# timm looks for this name in the module that registers a model.
default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in _BLOCKS})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, name, pretrained, blocks=_BLOCKS[name], **kwargs)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8 for 32 x 32 images, 0.08 M parameters: for small experiments."""
    return _create("cifar_resnet8", pretrained, kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32 x 32 images, 0.27 M parameters."""
    return _create("cifar_resnet20", pretrained, kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for 32 x 32 images, 0.47 M parameters."""
    return _create("cifar_resnet32", pretrained, kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for 32 x 32 images, 0.66 M parameters."""
    return _create("cifar_resnet44", pretrained, kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for 32 x 32 images, 0.86 M parameters, as in the paper."""
    return _create("cifar_resnet56", pretrained, kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-110 for 32 x 32 images, 1.73 M parameters.

    The paper's 1.78 M can't be reproduced: counted as its other sizes are, with a bias in each
    convolution and BatchNorm's running statistics, it is 1.74 M.
    """
    return _create("cifar_resnet110", pretrained, kwargs)


@register_model
def cifar_resnet152_mega(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """The paper's "ResNet 152": 18, 37 and 37 blocks, 186 layers, for 32 x 32 images.

    It has 3.49 M parameters: convolutions, which have no biases, BatchNorm's weights and biases,
    and the classifier.
    The paper's 3.51 M count a bias in each convolution and BatchNorm's running statistics too.
    """
    return _create("cifar_resnet152_mega", pretrained, kwargs)
