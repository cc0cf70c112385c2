"""A run as a folder that trains again without this app."""
