"""One command per headline figure: `python -m benchmarks.<name>`; results/ holds what was measured."""
