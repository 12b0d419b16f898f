"""A network trained on scikit-learn's digits, and what conversions of it know. Run this file for the docs' table."""

import functools
import itertools

import torch
from sklearn.datasets import load_digits
from torch import nn

import hetconv_cli as hc

PARTS, IMAGES = (2, 4, 8), (32, 128, 512)
TRAINED_ON = 1200
EPOCHS, BATCH = 12, 64


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1797, 1, 8, 8] from 0 to 1, shuffled, and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16, torch.tensor(labels)[order]


def network() -> nn.Module:
    def block(m: int, n: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(m, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU())

    blocks = [block(1, 32), block(32, 32), block(32, 32), block(32, 64, 2), block(64, 64), block(64, 64)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@functools.cache
def trained() -> nn.Module:
    """Trained for some ten seconds on the first 1200 images."""
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
        steps = EPOCHS * -(-TRAINED_ON // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(TRAINED_ON).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On the 597 images that were not trained on."""
    images, labels = digits()
    found = model.eval()(images[TRAINED_ON:]).argmax(1)
    return float((found == labels[TRAINED_ON:]).float().mean())


def row(p: int, *, reorder: bool = False) -> dict[str, float]:
    """Accuracies with a part: by centre taps, by sums, and calibrated on so many unlabelled training images."""
    images, _ = digits()
    more = {"reorder": reorder, "example": images[:1]}
    how = {way: {"transfer": way} for way in ("center", "sum")}
    how |= {str(count): {"calibration": images[:count]} for count in IMAGES}
    return {name: accuracy(hc.convert(trained(), p=p, **way, **more).model) for name, way in how.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"original {100 * accuracy(trained()):.1f} %")  # noqa: T201  # a script's output
    for part, reorder in itertools.product(PARTS, (False, True)):
        found = {name: f"{100 * value:.1f} %" for name, value in row(part, reorder=reorder).items()}
        print(f"P={part}{', reordered' if reorder else ''}", found)  # noqa: T201
