"""One command per headline figure: `python -m benchmarks.<name>`; results/ keeps what came out."""
