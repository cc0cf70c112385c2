"""Sizes of memory and disk as text, the same on the page and in the engine."""


def size_text(n_bytes: float) -> str:
    """Write a number of bytes for people: "412 MB", "1.6 GB" (1 KB = 1024 bytes)."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 and unit == "GB" else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} bytes"
