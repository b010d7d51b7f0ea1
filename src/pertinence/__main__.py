"""`python -m pertinence`, which `torchrun -m pertinence` needs."""

import sys

from .cli import main


sys.exit(main())
