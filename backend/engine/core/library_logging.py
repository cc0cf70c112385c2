"""Which log output of the libraries is shown: their progress bars and advice are switched off."""

import warnings

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice out of our logs."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")
    # PEFT 0.21.2 reads a property that Transformers 5.23 renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
