"""The paper's networks that torchvision has not: VGG-16, ResNet and MobileNet for CIFAR-10, ResNet-34 with option A.

Sources: VGG-16 and the comparisons, P. Singh, V. K. Verma, P. Rai, V. P. Namboodiri, "HetConv", CVPR 2019; ResNet and
its option A, K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2;
MobileNet, A. G. Howard et al., "MobileNets", 2017, table 1; squeeze-and-excitation, J. Hu, L. Shen, G. Sun, CVPR 2018.

Convolutions are initialised from He's normal distribution, by fan-out, and have no bias where a BatchNorm follows.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from hetconv_cli.models.torchvision_import import import_torchvision

CLASSES = 10  # of CIFAR-10
SE_REDUCTION = 16  # the paper's

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a max-pooling after each group
_MOBILENET = (  # filters of the pointwise convolution, stride of the depthwise one
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def vgg16_cifar(se: bool = False) -> nn.Module:
    """VGG-16 for 32 x 32 images: 13 3 x 3 convolutions with BN and ReLU, then Linear 512-512, BN, ReLU, Linear 512-10.

    Args:
        se: A squeeze-and-excitation after every convolution, the first one too.
    """
    layers: list[nn.Module] = []
    channels = 3
    for group in _VGG16:
        for filters in group:
            layers += [_conv(channels, filters, se=se), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, CLASSES))
    parts = OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Sequential(*head))
    return _initialised(nn.Sequential(parts))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters (He et al., option A).

    Where the block halves the map, the shortcut takes every second row and column; where it has more channels than its
    input, zeros stand for those that are missing.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, se: bool) -> None:
        super().__init__()
        self.stride = stride
        self.missing = channels - in_channels
        self.conv1 = _conv(in_channels, channels, stride=stride, se=se)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, se=se)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, H, W] -> [batch, channels, H / stride, W / stride]."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(input)))))
        shortcut = input[..., :: self.stride, :: self.stride]
        if self.missing:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.missing))
        output: Tensor = self.relu(branch + shortcut)
        return output


class ResNet(nn.Module):
    """A residual network with parameter-free shortcuts; its stages are named as torchvision names them.

    Args:
        blocks: How many blocks each stage has.
        widths: Channels of each stage; every stage but the first begins with stride 2.
        stem: From the image to the first stage's input.
        classes: Of the output.
        se: A squeeze-and-excitation after every convolution of the blocks.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], stem: "OrderedDict[str, nn.Module]", classes: int, se: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem)
        self.stages = len(blocks)
        channels = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            stage = []
            for index in range(count):
                stage.append(ResidualBlock(channels, width, 2 if number > 1 and index == 0 else 1, se))
                channels = width
            setattr(self, f"layer{number}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, input: Tensor) -> Tensor:
        """[batch, 3, H, W] -> [batch, classes]."""
        features = self.stem(input)
        for number in range(1, self.stages + 1):
            features = self.get_submodule(f"layer{number}")(features)
        output: Tensor = self.fc(self.avgpool(features).flatten(1))
        return output


def resnet_cifar(depth: int, se: bool = False) -> nn.Module:
    """ResNet-`depth` for 32 x 32 images: (depth - 2) / 6 blocks in each of three stages of 16, 32 and 64 channels.

    Args:
        depth: 20, 32, 44, 56 or 110.
        se: A squeeze-and-excitation after every convolution, the first one too.
    """
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(3, 16, se=se), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)
    )
    return _initialised(ResNet([(depth - 2) // 6] * 3, (16, 32, 64), stem, CLASSES, se))


def resnet34_option_a(se: bool = False) -> nn.Module:
    """ResNet-34 for ImageNet with parameter-free shortcuts, where torchvision's has 1 x 1 convolutions.

    Args:
        se: A squeeze-and-excitation after every convolution, the first one too.
    """
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(3, 64, kernel=7, stride=2, se=se),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return _initialised(ResNet((3, 4, 6, 3), (64, 128, 256, 512), stem, 1000, se))


def mobilenet_cifar(se: bool = False) -> nn.Module:
    """MobileNet (v1) for 32 x 32 images: stride 1 in the first convolution, then 13 depthwise + pointwise pairs.

    Args:
        se: A squeeze-and-excitation after the first convolution and after every pair: what HetConv puts one layer for.
    """
    blocks: list[nn.Module] = [_normalised(_conv(3, 32, se=se), 32)]
    channels = 32
    for filters, stride in _MOBILENET:
        parts = OrderedDict(
            depthwise=_normalised(_conv(channels, channels, stride=stride, groups=channels), channels),
            pointwise=_normalised(_conv(channels, filters, kernel=1, se=se), filters),
        )
        blocks.append(nn.Sequential(parts))
        channels = filters
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return _initialised(nn.Sequential(OrderedDict(features=nn.Sequential(*blocks), classifier=nn.Sequential(*head))))


def _normalised(conv: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


def _conv(
    in_channels: int, channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, se: bool = False
) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    if not se:
        return conv
    squeeze = import_torchvision().ops.SqueezeExcitation(channels, max(1, channels // SE_REDUCTION))
    return nn.Sequential(OrderedDict(conv=conv, se=squeeze))  # as `hetconv convert --se` puts it: before the BN


def _initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
