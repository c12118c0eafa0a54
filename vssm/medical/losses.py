"""The losses of the published recipes, made of MONAI's.

Shapes: B images, K classes, H x W pixels; or D x H x W voxels.
"""

from mmengine.registry import MODELS
from torch import Tensor, nn

from .._optional import require


@MODELS.register_module()
class CEDiceLoss(nn.Module):
    """Cross-entropy and Dice for several classes.

    The Dice of a class is ``1 - (2 sum(p g) + 1e-5) / (sum(p^2) + sum(g^2) + 1e-5)`` over the whole batch, with the
    softmax p and the one-hot labels g; the mean is over all classes, the background included. MSVM-UNet
    (arXiv 2408.13735) weighs the two terms 0.4 and 0.6, VM-UNet (arXiv 2402.02491) on Synapse 1 and 1.

    Args:
        ce_weight: Factor of the cross-entropy.
        dice_weight: Factor of the Dice term.
    """

    def __init__(self, ce_weight: float = 0.4, dice_weight: float = 0.6):
        super().__init__()
        # Here, not above: MONAI takes seconds to import, and data preparation and tables do without it.
        losses = require("monai.losses", "medical")
        self.loss = losses.DiceCELoss(
            softmax=True,
            to_onehot_y=True,
            squared_pred=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
            lambda_ce=ce_weight,
            lambda_dice=dice_weight,
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of logits (B, K, H, W), in float32 whatever their dtype, and labels (B, H, W), integers."""
        return self.loss(logits.float(), label[:, None])


@MODELS.register_module()
class BCEDiceLoss(nn.Module):
    """Binary cross-entropy and soft Dice, for one class.

    The Dice of an image is ``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)``; the mean is over images. VM-UNet and
    MHS-UNet (arXiv 2406.05992) on ISIC; their networks end in a sigmoid, here the loss has it, which is the same number
    and keeps its precision near 0 and 1.

    Args:
        bce_weight: Factor of the cross-entropy.
        dice_weight: Factor of the Dice term.
    """

    def __init__(self, bce_weight: float = 1.0, dice_weight: float = 1.0):
        super().__init__()
        losses = require("monai.losses", "medical")
        self.loss = losses.DiceCELoss(
            sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, lambda_ce=bce_weight, lambda_dice=dice_weight
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of logits (B, 1, H, W), in float32 whatever their dtype, and labels (B, H, W), 0 or 1."""
        return self.loss(logits.float(), label[:, None].float())
