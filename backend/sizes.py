"""Sizes and large numbers as text, the same on the page and in the engine."""


def size_text(n_bytes: float) -> str:
    """Write a number of bytes for people: "412 MB", "1.6 GB" (1 KB = 1024 bytes)."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 and unit == "GB" else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} bytes"


def count_text(number: int) -> str:
    """Write a large number with few digits: "3.5 M", "1.2 B"."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= factor:
            value = number / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(number)
