"""The language of algorithms: a plain function is traced on symbols and becomes a Program. No torch in here."""

from optnet.language.declaration import Algorithm, NetworkDefaults, algorithm
from optnet.language.lookup import find_algorithm, list_algorithms
from optnet.language.program import Apply, Combine, Program
from optnet.language.symbols import Iterate, Operator, identity
from optnet.language.theorems import Theorem
from optnet.language.tracing import trace

__all__ = [
    "Algorithm",
    "Apply",
    "Combine",
    "Iterate",
    "NetworkDefaults",
    "Operator",
    "Program",
    "Theorem",
    "algorithm",
    "find_algorithm",
    "identity",
    "list_algorithms",
    "trace",
]
