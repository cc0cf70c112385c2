"""Mixtures of experts and layers that PEFT does not adapt: training, files, switching."""
