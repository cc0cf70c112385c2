"""The Runs screen: the list of runs, the details of one, and the comparison of several.

Knows nothing of the other tabs, except that it shows the panel of `ui.workspace`.
"""
