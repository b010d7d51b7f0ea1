"""The console script `pertinence`: it parses the command line before it imports transformers and torch, which take
seconds.

`import pertinence` registers the model with the Auto classes of transformers, and so imports both. Here the package is
executed only when an attribute `pertinence.<name>` is first read; its modules are imported as usual.
"""

import sys
from importlib.util import find_spec, module_from_spec


def postpone_package() -> None:
    """Put `pertinence` into `sys.modules`, to be executed when one of its attributes is first read."""
    spec = find_spec("pertinence")
    package = module_from_spec(spec)

    def execute(name: str):
        if name.startswith("__"):  # read by the import system
            raise AttributeError(name)
        del package.__getattr__  # the package defines its own
        spec.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = execute
    sys.modules["pertinence"] = package


def main() -> int:
    """Run a command; returns the exit status."""
    postpone_package()
    from pertinence.commands.main import main

    return main()
