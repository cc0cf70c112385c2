"""What a person picks: methods, blends, quantisations, chat templates, learning rates.

Facts and sentences about each choice; knows no tensors and starts nothing."""
