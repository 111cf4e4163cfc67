"""optnet turns an optimization algorithm into a neural network."""

from optnet import analysis, convert, objectives
from optnet.algorithms import find_algorithm, list_algorithms
from optnet.emitting import Call, LayerFactory
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
from optnet.mlp import MLP
from optnet.network import Network
from optnet.program import Apply, Combine, Program
from optnet.symbols import Iterate, Operator, identity
from optnet.tracing import Algorithm, algorithm, trace
from optnet.unroll import Coefficient, Unrolled, coefficients, unroll
from optnet.version import __version__
from optnet.zoo import create_model, freeze_all_but_coefficients, list_models

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
    "Operator",
    "OperatorError",
    "Program",
    "ProgramError",
    "RequestError",
    "ShapeError",
    "TraceError",
    "Unrolled",
    "__version__",
    "algorithm",
    "analysis",
    "coefficients",
    "convert",
    "create_model",
    "find_algorithm",
    "freeze_all_but_coefficients",
    "identity",
    "list_algorithms",
    "list_models",
    "objectives",
    "trace",
    "unroll",
]
