"""The console script `pertinence`: parses before it imports transformers and torch, which take seconds.

`import pertinence` registers the model with the Auto classes of transformers, and so imports all of that. Here the
package is executed when something of it is first asked for by `pertinence.<name>`; its modules are imported as usual.
"""

import sys
from importlib.util import find_spec, module_from_spec


def postpone_package() -> None:
    """Put `pertinence` into `sys.modules`, to be executed when an attribute of it is first asked for."""
    spec = find_spec("pertinence")
    package = module_from_spec(spec)

    def execute(name: str):
        if name.startswith("__"):  # asked for by the import system
            raise AttributeError(name)
        del package.__getattr__  # the package has one of its own
        spec.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = execute
    sys.modules["pertinence"] = package


def main() -> int:
    """Run a command; returns the exit status."""
    postpone_package()
    from pertinence.commands.main import main

    return main()
