"""The page as a whole: server, layout, theme, polling, session bar, HTTP API."""
