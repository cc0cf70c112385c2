"""The Runs screen: past runs, one in detail, several compared."""
