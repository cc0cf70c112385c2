"""The choices on offer: PEFT methods, blends, quantisations, chat templates, learning rates.

Facts and texts about each choice. Knows no tensors and starts nothing."""
