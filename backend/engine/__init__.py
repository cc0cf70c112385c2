"""The only code that imports torch, transformers, peft and datasets. Runs in the worker."""

import logging
import os
import sys

# Importing bitsandbytes 0.50.2 on a processor complains about an optional package that would fetch
# native code from the Hub, which the workbench never does: where `kernels` is installed, it stays
# out of reach, and Transformers is told the same.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
os.environ["USE_HUB_KERNELS"] = "NO"
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
