"""``python -m robust_trainer.cli``, which ``accelerate launch -m`` takes too."""

import sys

from .main import main

sys.exit(main())
