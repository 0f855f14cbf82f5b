"""`mega-hf` and `python -m mega_hf`, which `accelerate launch -m mega_hf` runs too."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command that this process was started for, and end the process."""
    from mega_hf.cli.main import main
    from mega_hf.runtime.environment import relax_gc

    relax_gc()
    code = main()
    if code > 128:
        os._exit(code)  # interrupted: wait for no thread
    sys.exit(code)


if __name__ == "__main__":
    run()
