"""The library of algorithms, one file per algorithm or family. No torch here: an algorithm is a plain recurrence.

To add an algorithm, add a file with one decorated function; all modules of this package are imported automatically.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
