"""Figures as people read them. What was not measured is a dash."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

ABSENT = "–"
Estimate = Mapping[str, Any] | None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number.

    Example:
        >>> [is_number(value) for value in (1, 0.5, None, float("nan"), True, "1")]
        [True, True, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 2) -> str:
    """
    Example:
        >>> number(1.2345), number(12345.6, 0), number(None)
        ('1.23', '12,346', '–')
    """
    return f"{value:,.{digits}f}" if is_number(value) else ABSENT


def short(value: Any) -> str:
    """Three or four significant digits, whatever the size.

    Example:
        >>> [short(value) for value in (1234567.0, 12345, 3.14159, 0.01234, 0.0000123, 0)]
        ['1.235e+06', '12,345', '3.14', '0.0123', '1.23e-05', '0']
    """
    if not is_number(value):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**9 else f"{value:.4g}"
    if abs(value) >= 10**6:
        return f"{value:.4g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def billions(value: Any) -> str:
    """
    Example:
        >>> billions(4.321e9), billions(1.2e12), billions(None)
        ('4.32', '1,200', '–')
    """
    return short(value / 1e9) if is_number(value) else ABSENT


def percent(value: Any, digits: int = 0) -> str:
    """
    Example:
        >>> percent(0.625), percent(None)
        ('62 %', '–')
    """
    return f"{100 * value:.{digits}f} %" if is_number(value) else ABSENT


def milliseconds(value: Any) -> str:
    """
    Example:
        >>> milliseconds(0.01234), milliseconds(0.003), milliseconds(1.5)
        ('12.3', '3.00', '1,500')
    """
    if not is_number(value):
        return ABSENT
    return f"{1000.0 * value:#.3g}" if 1e-7 < abs(value) < 0.0995 else short(1000.0 * value)


def size(value: Any) -> str:
    """
    Example:
        >>> size(2_500_000), size(0), size(None)
        ('2.4 MiB', '0 B', '–')
    """
    if not is_number(value):
        return ABSENT
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(value) >= 2**power:
            return f"{value / 2**power:.1f} {unit}"
    return f"{value:.0f} B"


def interval(found: Estimate, digits: int = 2, scale: float = 1.0) -> str:
    """The interval alone; nothing if there is none.

    Example:
        >>> interval({"low": 1.5, "high": 1.75}), interval({"low": None, "high": None})
        ('1.50–1.75', '')
    """
    if not found or not is_number(found.get("low")) or not is_number(found.get("high")):
        return ""
    return f"{scale * found['low']:,.{digits}f}–{scale * found['high']:,.{digits}f}"


def estimate(found: Estimate, digits: int = 2, scale: float = 1.0) -> str:
    """A figure with its interval.

    Example:
        >>> estimate({"value": 2.0, "low": 1.5, "high": 2.5}), estimate({"ratio": 2.0}), estimate(None)
        ('2.00 (1.50–2.50)', '2.00', '–')
    """
    value = central(found)
    if value is None:
        return ABSENT
    around = interval(found, digits, scale)
    return f"{scale * value:,.{digits}f}{f' ({around})' if around else ''}"


def rate(found: Estimate) -> str:
    """A share with its interval, in per cent.

    Example:
        >>> rate({"value": 0.5, "low": 0.42, "high": 0.61})
        '50 (42–61)'
    """
    return estimate(found, 0, 100.0)


def central(found: Estimate) -> float | None:
    """The figure itself; None if it was not measured.

    Example:
        >>> central({"value": 2.0}), central({"ratio": 1.5}), central({"value": None}), central(None)
        (2.0, 1.5, None, None)
    """
    value = (found or {}).get("value", (found or {}).get("ratio"))
    return float(value) if is_number(value) else None


def listing(words: Iterable[str]) -> str:
    """
    Example:
        >>> listing(["a", "b", "c"]), listing(["a"])
        ('a, b and c', 'a')
    """
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def plain(value: Any) -> str:
    """Any value of a settings table.

    Example:
        >>> plain(None), plain(True), plain([1, 2]), plain({"a": 1}), plain(0.25), plain(2026)
        ('–', 'yes', '1, 2', 'a: 1', '0.25', '2026')
    """
    if value is None or value == [] or value == {}:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {plain(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)
