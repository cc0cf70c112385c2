"""Choosing training data: files and sets of the Hub, the roles of columns, the report on the rows.

Knows nothing of methods and runs."""
