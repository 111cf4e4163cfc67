"""The library of algorithms, one file per algorithm or family. An algorithm is a plain function, without torch.

To add an algorithm, add a file with one decorated function; this package imports all its modules.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
