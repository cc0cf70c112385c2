"""The Workspace panel: export, import, and reporting a problem."""
