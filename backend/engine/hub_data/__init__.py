"""A data set of the Hub before its download: what it holds, what it takes, and its first rows.

Knows the Hub and the data files, and nothing of the session or of what a row means."""
