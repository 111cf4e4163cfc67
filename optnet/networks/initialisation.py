"""Initialisation of weights: the schemes, by their names in ``init=``. Knows no model and no layer family."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import lsuv
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from optnet.errors import ConfigError
from optnet.networks.layers.convolution import Conv2d
from optnet.networks.modes import mode
from optnet.networks.objectives import Elementwise
from optnet.options import choice, number, one_of

Fill = Callable[[Tensor, float], Any]


@runtime_checkable
class Classifier(Protocol):
    """The part of timm's model contract that this module needs."""

    def get_classifier(self) -> nn.Module: ...


def _uniform(weight: Tensor, scale: float) -> None:
    """U(-scale / sqrt(n), scale / sqrt(n)) for n inputs: variance scale^2 / (3 n)."""
    bound = scale * weight[0].numel() ** -0.5
    nn.init.uniform_(weight, -bound, bound)


SCHEMES: dict[str, Fill | None] = {
    "default": None,
    "glorot_uniform": lambda weight, gain: nn.init.xavier_uniform_(weight),
    "glorot_normal": lambda weight, gain: nn.init.xavier_normal_(weight),
    "lecun_uniform": lambda weight, gain: _uniform(weight, 3**0.5),
    "lecun_normal": lambda weight, gain: nn.init.normal_(weight, 0, weight[0].numel() ** -0.5),
    "he": lambda weight, gain: nn.init.normal_(weight, 0, gain * weight[0].numel() ** -0.5),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain),
    "fan_in": lambda weight, gain: _uniform(weight, 1.0),
    "lsuv": None,
}
"""The functions that fill a weight (outputs, inputs, ...) of one channel group, given the activation's gain.

The numbers of inputs and outputs include the kernel: they are channels of a group times the kernel's area, also for
transposed convolutions. default: the model's own initialisation. glorot_*: variance 2 / (inputs + outputs), Glorot and
Bengio 2010. lecun_*: variance 1 / inputs, LeCun, Bottou, Orr, Mueller 1998, section 4.6. he: variance gain^2 / inputs,
He et al. 2015. orthogonal: gain times a matrix with orthonormal rows or columns, Saxe et al. 2014. fan_in:
U(-1/sqrt(inputs), 1/sqrt(inputs)), whose variance is 1 / (3 inputs): torch's own start of convolutions and linear
layers, there written as ``kaiming_uniform_`` with a = sqrt 5. lsuv: orthonormal, then scaled until the output of every
layer has unit variance on a batch, Mishkin and Matas 2016.
"""
GAINED = ("he", "orthogonal")
"""The schemes that take a gain."""
OUTPUT_BIASES = ("zero", "frequencies")
NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
"""Modules of torch's activation package that are not elementwise functions."""


@dataclass
class InitOptions:
    """The initial weights of a network."""

    name: str = choice("default", *SCHEMES, help="the scheme; default: the model's own")
    gain: float | None = number(
        None, above=0, example=1.0, help="the gain of he and orthogonal; null: the gain of the activation"
    )
    bias: float | None = number(
        None,
        example=0.1,
        help="the bias of hidden layers and norms; a small positive one makes every ReLU active at first",
    )
    output_bias: str | None = choice(
        None, *OUTPUT_BIASES, help="the bias of the classifier: zero, or log p_c with p_c the frequency of class c"
    )


def initialise(
    model: nn.Module,
    scheme: str = "default",
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    gain: float | None = None,
    bias: float | None = None,
    output_bias: str | None = None,
) -> None:
    """Initialises the weights of all linear layers and convolutions; norms and coefficients keep their values.

    If ``images`` are given, weight-normed layers are then initialised from the data: see ``start_from_data``.

    Args:
        model: the network, any ``nn.Module``.
        scheme, gain, bias, output_bias: see ``InitOptions``; the activation's gain is ``activation_gain``. With
            ``frequencies`` the classifier's weights are 0, so that the initial loss is the entropy of the frequencies.
        images: a batch, for schemes that depend on data.
        labels: the labels of the training split, for ``output_bias='frequencies'``.

    Raises:
        ConfigError: the scheme is unknown, does not suit the model, or needs a batch that is missing; the scheme takes
            no gain; or a label is out of the classifier's range.
    """
    one_of("init", scheme, SCHEMES)
    if output_bias is not None:
        one_of("init.output_bias", output_bias, OUTPUT_BIASES)
    if gain is not None and scheme not in GAINED:
        raise ConfigError(f"init.gain={gain:g} is only for {' and '.join(GAINED)}; leave it out of init={scheme}")
    fill = SCHEMES[scheme]
    if fill is not None:
        gain = activation_gain(model) if gain is None else gain
        for layer in linear_maps(model):
            weight = torch.empty_like(layer.weight)
            for group in groups(layer, weight):
                part = torch.empty_like(group, memory_format=torch.contiguous_format)
                fill(part, gain)
                group.copy_(part)
            set_weight(layer, weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if scheme == "lsuv":
        _lsuv(model, images)
    if bias is not None:
        for module in model.modules():
            parameter = getattr(module, "bias", None)
            if isinstance(parameter, nn.Parameter) and module is not _classifier(model):
                nn.init.constant_(parameter, bias)
    if images is not None:
        start_from_data(model, images)
    if output_bias is not None:
        _start_classifier(model, output_bias, labels)


def needs_data(model: nn.Module, scheme: str) -> bool:
    """Whether the initialisation depends on a batch."""
    return scheme == "lsuv" or any(_weight_normed(layer) for layer in linear_maps(model))


def linear_maps(model: nn.Module) -> list[Any]:
    """All convolutions and linear layers, in the order of the model."""
    return [module for module in model.modules() if isinstance(module, (_ConvNd, nn.Linear))]


def groups(layer: Any, weight: Tensor) -> Tensor:
    """A view of a layer's weight as (groups, outputs of a group, inputs of a group, *kernel)."""
    parts = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return parts.transpose(1, 2) if getattr(layer, "transposed", False) else parts


@torch.no_grad()
def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Sets the weight of a layer, through its parametrization if it has one."""
    if parametrize.is_parametrized(layer, "weight"):
        layer.weight = weight
    else:
        assert isinstance(layer.weight, Tensor)
        layer.weight.copy_(weight)


def weight_norm_scales(model: nn.Module) -> set[str]:
    """The names of the parameters g of weight-normed layers, w = g v / |v|."""
    return {
        f"{name}.parametrizations.weight.original0" if name else "parametrizations.weight.original0"
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight") and isinstance(_first_parametrization(module), _WeightNorm)
    }


def _first_parametrization(module: Any) -> nn.Module:
    first: nn.Module = module.parametrizations.weight[0]
    return first


def activation_gain(model: nn.Module) -> float:
    """(E phi(z)^2)^(-1/2) for z ~ N(0, 1) and the model's first activation: sqrt 2 for ReLU; 1 without an activation.

    Weights of variance gain^2 / inputs keep the second moment the same from layer to layer. He et al. 2015.
    """
    for module in model.modules():
        place = type(module).__module__
        among = place.startswith(("torch.nn.modules.activation", "timm.layers.activations"))
        if isinstance(module, Elementwise) or (among and not isinstance(module, NOT_ELEMENTWISE)):
            z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
            density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
            channels = z[:, None].repeat(1, getattr(module, "num_parameters", 1))  # PReLU may have a slope per channel
            with torch.no_grad():
                values = copy.deepcopy(module).cpu().double().eval()(channels)
            return float(torch.trapezoid(values.square().mean(1) * density, z)) ** -0.5
    return 1.0


def _lsuv(model: nn.Module, images: Tensor | None) -> None:
    if images is None:
        raise ConfigError("init=lsuv needs a batch: give images=")
    if any(_weight_normed(layer) for layer in linear_maps(model)):
        raise ConfigError(
            "init=lsuv does not go with norm=weight or weight_mean, which start their own scales from the data; try "
            "init=orthogonal"
        )
    if any(parametrize.is_parametrized(layer, "weight") for layer in linear_maps(model)):
        raise ConfigError("init=lsuv cannot scale weights that are parametrized; try init=orthogonal")
    handles = [layer.register_forward_pre_hook(_protect) for layer in linear_maps(model)]
    try:
        with mode(model, training=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lsuv warns of layers that the model does not call
            lsuv.lsuv_with_singlebatch(model, images, std_tol=0.005, verbose=False, device=images.device)
    finally:
        for handle in handles:
            handle.remove()


def _protect(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Passes on a copy of the next output, because lsuv reads the output later and in-place layers would change it."""

    def copy(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        handle.remove()
        return output.clone()

    handle = layer.register_forward_hook(copy)  # registered now, so it runs after lsuv's hook


def _weight_normed(layer: Any) -> bool:
    """Whether the layer has a weight g v / |v| with one g per output channel."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    chain = layer.parametrizations.weight
    if not (len(chain) == 1 and isinstance(chain[0], _WeightNorm)):
        return False
    g, outputs = chain.original0, 1 if getattr(layer, "transposed", False) else 0
    return bool(g.shape[outputs] == g.numel()) if g.ndim else False


@torch.no_grad()
def start_from_data(model: nn.Module, images: Tensor) -> None:
    """g = 1 / sigma(t), b = -mean(t) / sigma(t), t = v x / |v|: weight-normed layers get outputs of mean 0, variance 1.

    Mean and sigma are per channel over the batch; a layer without b gets the variance alone. A single forward pass
    initialises one layer after the other; a layer that is called several times is initialised at its first call.
    Salimans and Kingma 2016, eq. (5).
    """
    hooks: dict[nn.Module, Any] = {}

    def start(layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        hooks[layer].remove()
        unscaled = (arguments[0], None, *arguments[2:]) if isinstance(layer, Conv2d) else arguments
        t = layer.forward(*unscaled)  # without the coefficient that scales our convolution's output
        channels = t.ndim - 1 if isinstance(layer, nn.Linear) else 1
        over = [dim for dim in range(t.ndim) if dim != channels]
        mean, deviation = t.mean(over), t.std(over, correction=0).clamp_min(1e-6)
        g = layer.parametrizations.weight.original0
        g.div_(deviation.reshape(g.shape))
        if layer.bias is not None:
            layer.bias.sub_(mean).div_(deviation)
        return layer.forward(*arguments)

    hooks |= {layer: layer.register_forward_hook(start) for layer in linear_maps(model) if _weight_normed(layer)}
    if not hooks:
        return
    try:
        with mode(model, training=False):
            model(images)
    finally:
        for hook in hooks.values():
            hook.remove()


def _classifier(model: nn.Module) -> nn.Linear | None:
    found = model.get_classifier() if isinstance(model, Classifier) else None
    return found if isinstance(found, nn.Linear) else None


@torch.no_grad()
def _start_classifier(model: nn.Module, output_bias: str, labels: Tensor | None) -> None:
    layer = _classifier(model)
    if layer is None or layer.bias is None:
        raise ConfigError(
            f"init.output_bias={output_bias} needs a model whose classifier is a linear layer with a bias"
        )
    nn.init.zeros_(layer.bias)
    if output_bias == "frequencies":
        if labels is None:
            raise ConfigError("init.output_bias=frequencies needs the labels of the training split: give labels=")
        classes = len(layer.bias)
        if not len(labels) or labels.min() < 0 or labels.max() >= classes:
            raise ConfigError(f"init.output_bias=frequencies needs labels from 0 to {classes - 1}, the model's classes")
        counts = torch.bincount(labels.cpu(), minlength=classes).clamp_min(1)  # empty classes: a finite bias
        layer.bias.copy_((counts / counts.sum()).log())
        nn.init.zeros_(layer.weight)
