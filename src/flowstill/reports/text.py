"""Numbers formatted for people; None becomes a dash."""

from __future__ import annotations

DASH = "–"


def count(value: int | None) -> str:
    """A whole number, its digits in groups of three.

    Example:
        >>> count(366938), count(None)
        ('366,938', '–')
    """
    return DASH if value is None else f"{value:,}"


def short(value: float | None) -> str:
    """A large count, to about three digits.

    Example:
        >>> short(54_710_000), short(940), short(4_089_284_608)
        ('54.7M', '940', '4.09G')
    """
    if value is None:
        return DASH
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    """An accuracy, to two places.

    Example:
        >>> percent(91.908)
        '91.91'
    """
    return DASH if value is None else f"{value:.2f}"


def points(value: float | None) -> str:
    """A difference, with its sign.

    Example:
        >>> points(3.171), points(-0.5)
        ('+3.17', '−0.50')
    """
    return DASH if value is None else f"{value:+.2f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, without leading zeros.

    Example:
        >>> duration(12.3), duration(100.2), duration(8640)
        ('12 s', '1:40', '2:24:00')
    """
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
