"""Numbers for display: units, few digits, no false precision. Knows nothing of screens."""

import os
import re
import time
from pathlib import Path

from backend import size_text

MINUTE, HOUR, DAY = 60, 3600, 86400

size = size_text


def duration(seconds: float) -> str:
    """Write a duration: "40 s", "1 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return _pair(whole, MINUTE, "min", 1, "s")
    if whole < DAY:
        return _pair(whole, HOUR, "h", MINUTE, "min")
    return _pair(whole, DAY, "days", HOUR, "h")


def about(seconds: float) -> str:
    """Write an approximate duration: "about 40 s", "under 1 s"."""
    return duration(seconds) if round(seconds) < 1 else f"about {duration(seconds)}"


def count(number: int) -> str:
    """Write a whole number with thousands separators: "31,744"."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Count things: "1 step", "118 steps"."""
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def short_count(number: int) -> str:
    """Write a large number with few digits: "3.5 M", "1.2 B"."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= factor:
            value = number / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(number)


def percent(share: float) -> str:
    """Write a share in whole percent; 0 % and 100 % only if they are exact."""
    if 0 < share < 0.01:
        return f"{max(share * 100, 0.1):.1f} %"
    if 0.99 < share < 1:
        return "99 %"
    return f"{share * 100:.0f} %"


def chance(share: float) -> str:
    """Write a probability: "< 0.1 %", "0.4 %", "12 %", "99.5 %", "> 99.9 %"."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    close = 0 < share < 0.01 or 0.99 < share < 1
    return f"{share * 100:.{1 if close else 0}f} %"


def signed(value: float) -> str:
    """Write a number between -1 and 1 in two digits, never as "-0.00"."""
    return f"{round(value, 2) + 0.0:.2f}"


def block(layer: str) -> str:
    """Return the block number of a layer, counted from 1; empty for a layer outside blocks."""
    number = next((part for part in layer.split(".") if part.isdigit()), None)
    return str(int(number) + 1) if number is not None else ""


def part_of_model(part: int, whole: int) -> str:
    """Write a share of a model: "0.9 % of the model (31,744 parameters)"."""
    share = part / whole * 100 if whole else 0.0
    digits = 1 if share < 10 else 0
    shown = f"{share:.{digits}f}" if share >= 0.05 else "under 0.1"
    return f"{shown} % of the model ({count(part)} parameters)"


def loss(value: float | None) -> str:
    """Write a loss with two significant digits or less: "4.1", "0.32", "0.004"."""
    if value is None:
        return "-"
    if value != value or value in (float("inf"), float("-inf")):
        return "not a number"
    if abs(value) >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def perplexity(value: float) -> str:
    """Write a perplexity: "1.42", "60.34", "5,310", "1.2e+08"."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def small(value: float) -> str:
    """Write a tiny difference: "0", "3e-07"."""
    return "0" if value == 0 else f"{value:.0e}"


def speed(tokens_per_second: float | None) -> str:
    """Write a training speed: "1,020 tokens/s"."""
    return "-" if not tokens_per_second else f"{round(tokens_per_second):,} tokens/s"


def when(moment: float, now: float | None = None) -> str:
    """Write a time: "today 14:05", "12 May 14:05"."""
    then, today = time.localtime(moment), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("today %H:%M", then)
    year = "" if then.tm_year == today.tm_year else f" {then.tm_year}"
    return f"{then.tm_mday} {time.strftime('%b', then)}{year} {time.strftime('%H:%M', then)}"


def shorten(text: str, length: int = 48) -> str:
    """Shorten a long text in the middle, where paths differ least."""
    if len(text) <= length:
        return text
    head = length // 2 - 1
    return f"{text[:head]}…{text[-(length - head - 1) :]}"


def source_name(source: str) -> str:
    """Return the last part of a path, and any other source as it is."""
    is_path = source.startswith(("/", ".", "~")) or "\\" in source
    return re.split(r"[\\/]", source.rstrip("\\/"))[-1] or source if is_path else source


def method(title: str, rank: int, *, experts: bool = False) -> str:
    """Write an adapter's method and rank: "LoRA with experts, rank 8"."""
    return f"{title}{' with experts' if experts else ''}, rank {rank}"


def whole_path(folder: str, root: Path) -> str:
    """Return a folder that was typed on the page as an absolute path; relative to `root`.

    The working directory of the app would mean nothing to the user.
    """
    return str(root.expanduser().absolute() / os.path.expanduser(folder.strip()))


def _pair(whole: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    first, rest = divmod(whole, big)
    second = rest // small
    unit = big_unit.removesuffix("s") if first == 1 and big_unit == "days" else big_unit
    return f"{first} {unit}" + (f" {second} {small_unit}" if second else "")
