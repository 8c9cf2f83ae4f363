"""Networks of the zoo in PyTorch, with the same weights and the same outputs."""

import jax
import numpy as np
import torch
from torch import nn

from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import PyTree, Variables

NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""What leaves of Linen layers are called in PyTorch; those that are missing keep their names."""


class CNN(nn.Module):
    """The twin of ``rlprune_jax.models.cnn``."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.depth = len(widths)
        for number, (one, two) in enumerate(zip((channels, *widths), widths, strict=False), 1):
            setattr(self, f"conv{number}", nn.Conv2d(one, two, 3, padding=1))
            setattr(self, f"norm{number}", nn.BatchNorm2d(two))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, C, H, W] to logits."""
        for number in range(1, self.depth + 1):
            x = getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(x)).relu()
            if number < self.depth:
                x = nn.functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions 3x3 beside a shortcut that is projected where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.projects = stride > 1 or inputs != channels
        if self.projects:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map feature maps to feature maps."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + (self.shortcut_norm(self.shortcut(x)) if self.projects else x)).relu()


class ThinResNet(nn.Module):
    """The twin of ``rlprune_jax.models.resnet.ThinResNet`` with projections."""

    def __init__(self, channels: int, depth: int, width: float, classes: int) -> None:
        super().__init__()
        widths = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.names = []
        inputs = widths[0]
        for stage, wide in enumerate(widths):
            for number in range((depth - 2) // 6):
                name = f"stage{stage + 1}_block{number + 1}"
                setattr(self, name, Block(inputs, wide, 2 if stage and not number else 1))
                self.names.append(name)
                inputs = wide
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, C, H, W] to logits."""
        x = self.stem_norm(self.stem(x)).relu()
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


def layer_of(path: str) -> str:
    """Return the name of the PyTorch layer that a variable belongs to.

    Example:
        >>> layer_of("params/stage1_block1/conv1/kernel")
        'stage1_block1.conv1'
    """
    return ".".join(path.split("/")[1:-1])


def carry(variables: Variables, twin: nn.Module) -> None:
    """Load the variables of a Linen network into its twin.

    Raises:
        RuntimeError: names or shapes differ.
    """
    state = {}
    for path, leaf in flatten_with_paths(variables).items():
        values = np.array(leaf)
        if values.ndim == 4:
            values = values.transpose(3, 2, 0, 1)
        elif values.ndim == 2:
            values = values.T
        last = path.split("/")[-1]
        state[f"{layer_of(path)}.{NAMES.get(last, last)}"] = torch.tensor(values)
    counters = {name for name in twin.state_dict() if name.endswith("num_batches_tracked")}
    missing = twin.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - counters:
        raise RuntimeError(f"the networks are no twins: {missing}")
    twin.eval()


def tensor(images: PyTree) -> torch.Tensor:
    """Return prepared images [B, H, W, C] as PyTorch takes them."""
    return torch.tensor(np.asarray(images, np.float32).transpose(0, 3, 1, 2))


def outputs_of(twin: nn.Module, images: PyTree) -> np.ndarray:
    """Return the logits of prepared images."""
    with torch.no_grad():
        return twin(tensor(images)).numpy()


def largest_difference(twin: nn.Module, images: PyTree, ours: jax.Array) -> float:
    """Return the largest difference of logits, relative to the largest logit if above 1."""
    logits = np.asarray(ours)
    difference = np.abs(outputs_of(twin, images) - logits).max()
    return float(difference / max(1.0, np.abs(logits).max()))
