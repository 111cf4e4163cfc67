"""The library of methods, one file per algorithm or close family. No torch here: a method is a plain recurrence.

To add an algorithm, add one file with one decorated function; every module of this package is imported by itself.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
