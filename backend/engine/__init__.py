"""The only code that imports torch, transformers, peft and datasets. Runs in the worker."""

import logging

# Importing bitsandbytes 0.50.2 on a processor complains about an optional package that would fetch
# native code from the Hub, which the workbench never does.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
