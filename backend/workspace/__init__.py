"""The workspace as a whole: its format, moving it to another machine, reporting a problem.

Knows its files, and nothing of what goes on in the session."""
