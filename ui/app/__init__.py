"""The page as a whole: server, layout, theme, polling, session bar, HTTP API.

The only package that knows all screens; no screen knows it.
"""
