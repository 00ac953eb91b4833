"""Hugging Face Trainer on PyTorch: networks from their configurations, `bf16=True`, on a GPU where there is one."""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
import work
from hugging_face import begin, settings
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)
from turns import Turns
from work import ROWS, Row


class Images(Dataset):
    """Made-up images in memory, under as many indices as steps could ask for."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._x = torch.from_numpy(rng.random((work.NUM_IMAGES, 3, work.SIDE, work.SIDE), np.float32))
        self._y = rng.integers(work.NUM_CLASSES, size=work.NUM_IMAGES)

    def __len__(self) -> int:
        return work.NUM_STEPS * work.BATCH_SIZE

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"pixel_values": self._x[index % work.NUM_IMAGES], "labels": int(self._y[index % work.NUM_IMAGES])}


class AfterStep(TrainerCallback):
    """Tells `turns` of each step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_: object, **__: object) -> None:
        if self._turns.ends_turn and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._turns.step_done()


def network(row: Row) -> PreTrainedModel:
    """The row's network."""
    if row.name == "resnet50":
        # Its defaults are a ResNet-50, but for where the stride is.
        return ResNetForImageClassification(ResNetConfig(num_labels=work.NUM_CLASSES, downsample_in_bottleneck=True))
    config = ViTConfig(
        hidden_size=work.WIDTH,
        num_hidden_layers=work.DEPTH,
        num_attention_heads=work.HEADS,
        intermediate_size=4 * work.WIDTH,
        image_size=work.SIDE,
        patch_size=work.PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=work.LAYER_NORM_EPSILON,
        num_labels=work.NUM_CLASSES,
    )
    return ViTForImageClassification(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=tuple(ROWS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    versions = begin(args.seed)
    trained = network(ROWS[args.row])
    ROWS[args.row].check(sum(weight.numel() for weight in trained.parameters() if weight.requires_grad))
    turns = Turns(warm_up_steps=work.WARM_UP_STEPS, facts={"versions": versions})
    with tempfile.TemporaryDirectory() as folder:
        # What the other tools do too: no clipping.
        chosen = settings(
            folder,
            seed=args.seed,
            per_device_train_batch_size=work.BATCH_SIZE,
            max_steps=work.NUM_STEPS,
            learning_rate=work.LEARNING_RATE,
            lr_scheduler_type="cosine",
            weight_decay=work.WEIGHT_DECAY,
            max_grad_norm=0.0,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=trained,
            args=chosen,
            train_dataset=Images(args.seed),
            callbacks=[AfterStep(turns)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
