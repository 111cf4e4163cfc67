"""Every error that means "the request was wrong". One line each, saying what to do; the command line exits with 2."""


class RequestError(ValueError):
    """The request was wrong; the message is one line that says what to write instead."""


class AlgorithmError(RequestError):
    """An algorithm's text, its constants or its number of steps cannot be read."""


class TraceError(AlgorithmError, TypeError):
    """An iterate was used for something a linear recurrence cannot do."""


class ProgramError(RequestError):
    """A program (also one read from JSON) is not a straight-line program."""


class OperatorError(RequestError):
    """An operator is missing, unknown, given twice, or not a layer."""


class ShapeError(RequestError, RuntimeError):
    """Two terms of one sum do not have the same shape."""


class ModelError(RequestError):
    """An unknown model, or an option that the model cannot have."""


class ConfigError(RequestError):
    """A configuration key or value is unknown, of the wrong type or out of range."""


class DataError(RequestError):
    """A data set is unknown, missing or empty."""


class CheckpointError(RequestError):
    """A checkpoint is missing, truncated, or not one of ours."""
