"""The multilayer perceptron, which can be trained with and without backpropagation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from optnet.errors import ModelError, unknown
from optnet.networks import objectives
from optnet.networks.objectives import Activation, Elementwise


class MLP(nn.Module):
    """x_k = phi(W_k x_{k-1} + b_k), logits W_n x_{n-1} + b_n, on flattened images (batch, in_chans, height, width).

    Weights and biases are initialised with U(-1/sqrt(inputs), 1/sqrt(inputs)), the fan-in rule.

    Args:
        hidden: the widths of the hidden layers.
        act_layer: an activation of ``optnet.objectives``, its name, or a non-decreasing elementwise function.
        img_size: height and width of the images.

    Raises:
        ModelError: the activation is unknown or a width is out of range.
        RequestError: a function cannot be used as an activation; see ``optnet.objectives.own``.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (300, 100),
        *,
        act_layer: str | Activation | Callable[[Tensor], Tensor] = "relu",
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | Sequence[int] = 28,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not hidden or any(type(width) is not int or width < 1 for width in hidden):
            raise ModelError(f"hidden={list(hidden)} must be whole numbers of at least 1, one per layer")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        chosen = _activation(act_layer)
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = [in_chans * height * width, *hidden]
        for inputs, outputs in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(inputs, outputs, **dd), Elementwise(chosen)]
        self.in_chans = in_chans
        self.body = nn.Sequential(*layers)
        self.drop = nn.Dropout(drop_rate)
        self.num_features = self.head_hidden_size = sizes[-1]
        self.reset_classifier(num_classes, **dd)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, **dd: Any) -> None:
        """Replaces the last layer; removes it if ``num_classes`` is 0."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """x_{n-1}: (batch, num_features)."""
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:  # a real annotation, not a string: fx copies it into the code it writes
        return self.forward_head(self.forward_features(x))


def _activation(given: str | Activation | Callable[[Tensor], Tensor]) -> Activation:
    if isinstance(given, Activation):
        return given
    if callable(given):
        return objectives.own(given)
    if given not in objectives.ACTIVATIONS:
        raise ModelError(f"mlp: {unknown('act_layer', given, objectives.ACTIVATIONS)}")
    return objectives.activation(given)


default_cfgs = generate_default_cfgs(
    {
        "mlp": {
            "num_classes": 10, "input_size": (1, 28, 28), "fixed_input_size": True, "pool_size": None, "crop_pct": 1.0,
            "interpolation": "bicubic", "mean": (0.1307,), "std": (0.3081,), "first_conv": None, "classifier": "head",
            "license": "mit",
        }
    }
)  # fmt: skip


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A multilayer perceptron; its arguments are those of ``MLP``.

    Raises:
        ModelError: ``features_only`` is given: the features of an MLP are no maps of an image.
    """
    if kwargs.get("features_only"):
        raise ModelError("mlp has no feature maps, so features_only=True is not possible; use forward_features")
    return build_model_with_cfg(MLP, "mlp", pretrained, **kwargs)
