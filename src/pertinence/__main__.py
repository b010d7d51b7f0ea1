"""`python -m pertinence`, which `torchrun -m pertinence` needs."""

import sys

from .commands.main import main


sys.exit(main())
