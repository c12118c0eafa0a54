"""ResNet-12, the usual backbone of few-shot learning on small images (arXiv 1805.10123, TADAM), by a name of timm."""

from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

__all__ = ["ResNet12"]


class _Block(nn.Module):
    """Three convolutions beside one of a pixel, then half the size."""

    def __init__(self, width: int, out: int):
        super().__init__()
        steps: list[nn.Module] = []
        for number in range(3):
            steps += [nn.Conv2d(width if number == 0 else out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)]
            steps += [nn.LeakyReLU(0.1)] if number < 2 else []
        self.convs = nn.Sequential(*steps)
        self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))
        self.act = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.act(self.convs(x) + self.shortcut(x)))


class ResNet12(nn.Module):
    """Four blocks of three convolutions, each of which halves the map: an image of 32 pixels ends as 2, one of 84 as 5.

    Args:
        num_classes: Of the classifier; 0: none.
        in_chans: Channels of the image.
        dims: Widths of the blocks.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dims: tuple[int, ...] = (64, 160, 320, 640)):
        super().__init__()
        self.num_classes = num_classes
        self.num_features = dims[-1]
        self.feature_info = []
        for number, (width, out) in enumerate(zip((in_chans, *dims), dims, strict=False), 1):
            self.add_module(f"layer{number}", _Block(width, out))
            self.feature_info.append(dict(num_chs=out, reduction=2**number, module=f"layer{number}"))
        self.fc = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, 3, H, W)."""
        for info in self.feature_info:
            x = self.get_submodule(info["module"])(x)
        return self.fc(x.mean((2, 3)))


@register_model
def resnet12(pretrained: bool = False, **kwargs: Any) -> ResNet12:
    """Build ResNet-12; there are no weights."""
    return build_model_with_cfg(ResNet12, "resnet12", pretrained, feature_cfg=dict(out_indices=(0, 1, 2, 3)), **kwargs)
