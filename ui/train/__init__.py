"""The Train screen: data, settings, the check before the start, and the live run.

Knows nothing of the other tabs, which `ui.app.layout` connects.
"""
