# SPDX-License-Identifier: Apache-2.0
"""The peer: the same training step in PyTorch, as a process that `training.py` starts and asks for windows.

It reads one line of JSON for each question from standard input and answers with one line. The network is
ResNet-50 version 1 (a stage's stride is in the first 1x1 of its first block), channels last, activations in
the given precision by autocast, stochastic gradient descent with momentum 0.9, cross entropy with label
smoothing 0.1; the images are on the device as uint8 and are normalised there. `eager` runs it as it stands,
any other way through `torch.compile`. Needs PyTorch (the extra `bench`) and nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

#: How the step may be run -> the mode of `torch.compile`; None: not compiled.
MODES = {"eager": None, "compiled": "default", "autotuned": "max-autotune-no-cudagraphs"}

MOMENTUM, SMOOTHING, RATE = 0.9, 0.1, 0.001
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet50(width: int, blocks: list[int], classes: int) -> Any:
    """Return ResNet-50 version 1 with He-normal weights and each block's last batch norm at zero."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, inner: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * inner
            self.relu = nn.ReLU(inplace=True)
            self.branch = nn.Sequential(
                nn.Conv2d(inputs, inner, 1, stride, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            self.shortcut = nn.Sequential()
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            nn.init.zeros_(self.branch[-1].weight)

        def forward(self, x: Any) -> Any:
            return self.relu(self.branch(x) + self.shortcut(x))

    layers = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            inner = width * 2**stage
            layers.append(Block(channels, inner, 2 if stage and not block else 1))
            channels = 4 * inner
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.kaiming_normal_(model[-1].weight, nonlinearity="relu")
    nn.init.zeros_(model[-1].bias)
    return model


class Step:
    """The step with its model, optimiser and batch on the device."""

    def __init__(self, shape: dict[str, Any], mode: str | None) -> None:
        import torch

        self.torch, batch, side = torch, shape["batch"], shape["image"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.manual_seed(0)
        model = resnet50(shape["width"], shape["blocks"], shape["classes"])
        self.parameters = sum(tensor.numel() for tensor in model.parameters())
        model = model.to(self.device, memory_format=torch.channels_last).train()

        # Images as a loader delivers them, [B, H, W, C]: seen as [B, C, H, W] they are channels last already.
        self.images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8).to(self.device)
        self.labels = torch.randint(0, shape["classes"], (batch,)).to(self.device)
        self.optimiser = torch.optim.SGD(
            model.parameters(), lr=RATE, momentum=MOMENTUM, fused=self.device.type == "cuda"
        )
        mean, deviation = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION)
        )
        precision = getattr(torch, shape["precision"])

        def loss_of(images: Any, labels: Any) -> Any:
            inputs = (images.permute(0, 3, 1, 2).float() / 255 - mean) / deviation
            with torch.autocast(self.device.type, dtype=precision, enabled=shape["precision"] != "float32"):
                logits = model(inputs)
            return torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)

        self.loss_of = loss_of if mode is None else torch.compile(loss_of, mode=mode)

    def window(self, steps: int) -> tuple[float, float]:
        """Return the seconds of a step, and the loss of the last one."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.optimiser.zero_grad(set_to_none=True)
            loss = self.loss_of(self.images, self.labels)
            loss.backward()
            self.optimiser.step()
        value = float(loss.detach())
        return (time.perf_counter() - begin) / steps, value


def answer(question: dict[str, Any], made: dict[str, Step]) -> dict[str, Any]:
    """Answer a question: `make` a step, or run a `window` of one."""
    way = question["way"]
    if "shape" in question:
        import torch

        begin = time.perf_counter()
        made[way] = step = Step(question["shape"], MODES[way])
        losses = [step.window(1)[1] for _ in range(3)]
        cuda = torch.cuda.is_available()
        return {
            "torch": torch.__version__,
            "parameters": step.parameters,
            "losses": losses,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "start_s": time.perf_counter() - begin,
        }
    seconds, loss = made[way].window(question["steps"])
    return {"seconds": seconds, "loss": loss}


def main() -> int:
    # Answers go where standard output went; everything that a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made: dict[str, Step] = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply = answer(question, made)
        except Exception as error:
            # Send the error to the caller: a way that does not run here becomes a row of the table.
            made.pop(question["way"], None)
            reply = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
