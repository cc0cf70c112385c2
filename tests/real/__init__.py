"""Tests on a real chat model, which `python3 start.py --test` installs."""
