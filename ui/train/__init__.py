"""The Train screen: data, settings, the check before the start, and the run as it goes on."""
