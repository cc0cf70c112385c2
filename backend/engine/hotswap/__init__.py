"""The hot-swap slot: preparing, compiling, swapping in milliseconds, leaving, with proof."""
