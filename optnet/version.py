"""The version, in a file that needs no torch to be read."""

__version__ = "0.1.0"
