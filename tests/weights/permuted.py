"""Models in which every number matters, and shuffled channels, for the tests of alignment."""

import numpy as np
import torch
from torch import nn

from mega_hf.weights.matching import permute


def stir(model, seed=0):
    """Give each weight and statistic its own value, so that a wrong move changes the output."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.dim() == 1 and not name.endswith(("bias", "running_mean")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
        elif tensor.dim() <= 1:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    return model.eval().requires_grad_(False)


def shuffle(state, groups, seed=0):
    """Return a state dict with the channels of all groups in a random order, and the orders."""
    draw = np.random.default_rng(seed)
    orders = [draw.permutation(group.size) for group in groups]
    return permute(state, groups, orders), orders


def answer(model, state, shape):
    model.load_state_dict(state)
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(9))
    output = model(images)
    return getattr(output, "logits", output)


class Net(nn.Module):
    """A net of named layers, and a function that applies them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers, self.how = nn.ModuleDict(layers), forward

    def forward(self, images):
        return self.how(self.layers, images)
