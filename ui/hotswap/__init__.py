"""The Hot-swap screen: preparing the slot, and swapping in it."""
