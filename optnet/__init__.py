"""optnet turns an optimization algorithm into a neural network."""

from typing import TYPE_CHECKING, Any

from optnet.app import program as program  # first: a signal to one of our programs is one line, now too

# isort: split
from optnet import algorithms, analysis
from optnet.errors import (
    AlgorithmError,
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    OperatorError,
    ProgramError,
    RequestError,
    ShapeError,
    TraceError,
)
from optnet.language import (
    Algorithm,
    Apply,
    Combine,
    Iterate,
    NetworkDefaults,
    Operator,
    Program,
    algorithm,
    find_algorithm,
    identity,
    list_algorithms,
    trace,
)
from optnet.networks import convert, objectives
from optnet.networks.certificates import certify
from optnet.networks.emitting import Call, LayerFactory
from optnet.networks.mlp import MLP
from optnet.networks.network import Network
from optnet.networks.tokens import TokenNetwork
from optnet.networks.unrolled import Coefficient, Unrolled, coefficients, unroll
from optnet.networks.zoo import create_model, freeze_all_but_coefficients, list_models
from optnet.version import __version__

if TYPE_CHECKING:
    from optnet.training.trained import load

__all__ = [
    "MLP",
    "Algorithm",
    "AlgorithmError",
    "Apply",
    "Call",
    "CheckpointError",
    "Coefficient",
    "Combine",
    "ConfigError",
    "DataError",
    "Iterate",
    "LayerFactory",
    "ModelError",
    "Network",
    "NetworkDefaults",
    "Operator",
    "OperatorError",
    "Program",
    "ProgramError",
    "RequestError",
    "ShapeError",
    "TokenNetwork",
    "TraceError",
    "Unrolled",
    "__version__",
    "algorithm",
    "algorithms",
    "analysis",
    "certify",
    "coefficients",
    "convert",
    "create_model",
    "find_algorithm",
    "freeze_all_but_coefficients",
    "identity",
    "list_algorithms",
    "list_models",
    "load",
    "objectives",
    "trace",
    "unroll",
]


def __getattr__(name: str) -> Any:
    """``optnet.load`` on its first use: ``import optnet`` alone imports nothing of data sets and training."""
    if name == "load":
        from optnet.training.trained import load

        globals()["load"] = load
        return load
    raise AttributeError(f"module 'optnet' has no attribute '{name}'")
