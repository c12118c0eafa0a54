"""The loss of a student that a trained teacher helps."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.config import ConfigError


class DistillationLoss(nn.Module):
    """The loss of DeiT (arXiv 2012.12877, equations 2 and 3), with its official code's scaling of the soft form.

    (1 - alpha) base(logits, targets) + alpha D(logits_dist, teacher_logits), where D is

    - ``"hard"``: the cross-entropy with the teacher's most probable class;
    - ``"soft"``: tau^2 / (B K) times the sum of KL(teacher || student) over the batch, both at temperature tau. The
      division is by images and classes, not only by images: alpha differs in meaning from the paper's equation.

    Args:
        base: Maps logits (B, K) and targets to a scalar.
        kind: ``"hard"`` or ``"soft"``.
        alpha: The teacher's weight.
        tau: Temperature of the soft form.

    Raises:
        ConfigError: ``kind`` is neither of the two, ``alpha`` lies outside of [0, 1], or ``tau`` is not positive.
    """

    def __init__(self, base: nn.Module, kind: str = "hard", alpha: float = 0.5, tau: float = 1.0):
        super().__init__()
        if kind not in ("hard", "soft"):
            raise ConfigError(f"Distillation has the kinds 'hard' and 'soft', not '{kind}'.")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"Distillation needs an alpha from 0 to 1, not {alpha}.")
        if not tau > 0:
            raise ConfigError(f"Distillation needs a positive tau, not {tau}.")
        self.base = base
        self.kind = kind
        self.alpha = alpha
        self.tau = tau

    def forward(
        self, logits: Tensor, logits_dist: Tensor, teacher_logits: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the two weighted terms, whose sum is the loss.

        Args:
            logits: The student's classifier (B, K).
            logits_dist: The student's distillation head (B, K); the same as ``logits`` where it has one head only.
            teacher_logits: (B, K).
            targets: What ``base`` takes: classes (B,) or mixed labels (B, K).

        Returns:
            ``loss_base`` and ``loss_distillation``.
        """
        if self.kind == "hard":
            term = F.cross_entropy(logits_dist, teacher_logits.argmax(dim=-1))
        else:
            student = (logits_dist / self.tau).log_softmax(dim=-1)
            teacher = (teacher_logits / self.tau).log_softmax(dim=-1)
            term = F.kl_div(student, teacher, reduction="sum", log_target=True) * self.tau**2 / student.numel()
        return {"loss_base": (1 - self.alpha) * self.base(logits, targets), "loss_distillation": self.alpha * term}

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, alpha={self.alpha}, tau={self.tau}"
