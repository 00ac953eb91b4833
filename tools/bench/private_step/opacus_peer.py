"""Opacus on PyTorch: per-example gradients by hooks, or ghost clipping (`--mode`).

Positions get a sampler of their own, as Opacus's guide proposes for a layer that it does not know; the
gradient that arrives there is already the one per example.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import opacus
import rows
import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from paired import Contender, Step, answer
from rows import Row
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# Letters in shapes: B images, T patches, D width, H heads, K width of a head.


class Positions(nn.Module):
    """Adds learned positions to (B, T, D) tokens."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.05 * torch.randn(num_patches, rows.WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


@register_grad_sampler(Positions)
def _positions_per_example(layer: Positions, inputs: list, backprops: torch.Tensor) -> dict:
    return {layer.table: backprops}


@register_norm_sampler(Positions)
def _positions_norm(layer: Positions, inputs: list, backprops: torch.Tensor) -> dict:
    return {layer.table: backprops.flatten(1).norm(2, dim=1)}


class Adapted(nn.Module):
    """A dense layer with an update of low rank beside it, one a head where `heads` is above 1."""

    def __init__(self, base: nn.Linear, heads: int) -> None:
        super().__init__()
        self.base, self.heads = base, heads
        self.a = nn.Linear(base.in_features, heads * rows.LORA_RANK, bias=False)
        self.b = nn.Linear(rows.LORA_RANK, base.out_features // heads, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Ghost clipping knows dense layers on tensors of three dimensions only.
        low = self.a(x).reshape(len(x), -1, rows.LORA_RANK)  # (B, T * H, rank)
        return self.base(x) + self.b(low).view(*x.shape[:2], -1)  # (B, T, H * K)


class Attention(nn.Module):
    """Self-attention of (B, T, D) tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(rows.WIDTH, rows.WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projections = (self.query, self.key, self.value)
        split = [layer(x).unflatten(-1, (rows.HEADS, -1)).transpose(1, 2) for layer in projections]
        mixed = F.scaled_dot_product_attention(*split)  # (B, H, T, K)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(rows.WIDTH, eps=rows.LAYER_NORM_EPSILON) for _ in range(2))
        self.attention = Attention()
        self.wide, self.narrow = nn.Linear(rows.WIDTH, 4 * rows.WIDTH), nn.Linear(4 * rows.WIDTH, rows.WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.narrow(F.gelu(self.wide(self.norm_2(x))))


class Vit(nn.Module):
    """Logits of (B, 3, side, side) images."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, rows.WIDTH, rows.PATCH, rows.PATCH)
        self.positions = Positions(num_patches)
        self.blocks = nn.Sequential(*[Block() for _ in range(rows.DEPTH)])
        self.norm = nn.LayerNorm(rows.WIDTH, eps=rows.LAYER_NORM_EPSILON)
        self.head = nn.Linear(rows.WIDTH, rows.NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (B, T, D)
        return self.head(self.norm(self.blocks(self.positions(tokens))).mean(1))


def cnn() -> nn.Module:
    """The row's network."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in rows.CHANNELS:
        layers.append(nn.Conv2d(channels, filters, 3, padding=1))
        layers.append(nn.GroupNorm(rows.GROUPS, filters, eps=rows.GROUP_NORM_EPSILON))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, rows.NUM_CLASSES))


def network(row: Row) -> nn.Module:
    """The row's network, with only what it trains requiring gradients."""
    if row.name == "cnn":
        built = cnn()
    else:
        built = Vit(row.num_patches)
        if row.name in ("head", "lora"):
            built.requires_grad_(False)
            built.head.requires_grad_(True)
        if row.name == "lora":
            _adapt(built)
    row.check(sum(weight.numel() for weight in built.parameters() if weight.requires_grad))
    return built


def _adapt(vit: Vit) -> None:
    for block in vit.blocks:
        for name in ("query", "key", "value"):
            setattr(block.attention, name, Adapted(getattr(block.attention, name), rows.HEADS))
        block.attention.output = Adapted(block.attention.output, 1)
        block.wide, block.narrow = Adapted(block.wide, 1), Adapted(block.narrow, 1)


def build(row: Row, args: argparse.Namespace) -> Contender:
    """Steps of the row's network on one batch."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    x = torch.randn(row.batch_size, 3, row.side, row.side)
    y = torch.randint(0, rows.NUM_CLASSES, (row.batch_size,))

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
        built = network(row).train()
        trained = [weight for weight in built.parameters() if weight.requires_grad]
        return built, torch.optim.SGD(trained, rows.LEARNING_RATE), nn.CrossEntropyLoss()

    def private() -> Step:
        module, optimizer, criterion = parts()
        made = PrivacyEngine().make_private(
            module=module,
            optimizer=optimizer,
            criterion=criterion,
            # One batch an epoch, so that Opacus divides by the batch; a drawn batch would vary in size.
            data_loader=DataLoader(TensorDataset(x, y), batch_size=row.batch_size),
            poisson_sampling=False,
            noise_multiplier=rows.NOISE_MULTIPLIER,
            max_grad_norm=rows.CLIP_NORM,
            grad_sample_mode=args.mode,
        )
        if args.mode == "ghost":
            module, optimizer, criterion, _ = made
        else:
            module, optimizer, _ = made
        return _step(module, optimizer, criterion, x, y)

    versions = {"opacus": opacus.__version__, "torch": torch.__version__}
    return Contender(private=private, plain=lambda: _step(*parts(), x, y), versions=versions)


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, criterion: Callable, *batch: torch.Tensor) -> Step:
    x, y = batch

    def step() -> None:
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--mode", choices=("hooks", "ghost"), required=True)
    answer(build, flags)
