"""The only code that imports torch, transformers, peft and datasets. Runs in the worker process.

Knows nothing of the page: it takes requests (`backend.requests`) and returns results."""

import logging
import os
import sys

# bitsandbytes 0.50.2 on a processor logs an error about the optional package `kernels`, which would
# download native code from the Hub. The workbench never does that, so `kernels` cannot be imported
# even where it is installed, and Transformers does not use it either.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
os.environ["USE_HUB_KERNELS"] = "NO"
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
