"""Small networks that several tests build."""

from torch import nn


class Net(nn.Module):
    """A forward function over modules by name."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv(m=8, n=8, kernel=3, **more) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(m, n, kernel, padding=kernel // 2, **more)
