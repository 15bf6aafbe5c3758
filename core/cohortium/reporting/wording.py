"""Numbers in the form in which people read them."""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Context, Decimal
from typing import TYPE_CHECKING

from cohortium.data.scores import DECIMALS
from cohortium.privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

    from cohortium.privacy.guarantee import Guarantee, Unit
    from cohortium.privacy.membership import MembershipBound

THIN = "\N{NARROW NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
"""Sign for a missing number."""

MAX_FACTOR = 1e6
"""Largest factor that is written out. A larger one is written as a power."""

FALSE_ALARMS = 0.01
"""Rate of false alarms at which a guarantee alone bounds a test."""

UNITS: dict[Unit, str] = {
    "example": "any one image",
    "patient": "all images of any one patient",
    "site": "all that any one hospital holds",
}
"""Units of a guarantee, in words."""


def is_known(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a number. NaN is none: it stands for an undetermined score."""
    return value is not None and not math.isnan(value)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share of one as a percentage."""
    return f"{share:.{digits}%}".replace("%", f"{THIN}%") if is_known(share) else NONE


def decimal(number: float | None, digits: int = 3) -> str:
    """Return a number with `digits` digits after the point."""
    return f"{number:.{digits}f}" if is_known(number) else NONE


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with `digits` significant digits."""
    return NONE if value is None else f"{value:.{digits}g}"


def metric(value: float | None, name: str) -> str:
    """Return the value of the metric `name`."""
    return decimal(value) if name in DECIMALS else percent(value)


def count(number: float | None) -> str:
    """Return a whole number."""
    return NONE if number is None else f"{number:,.0f}"


def bound(number: float | None) -> str:
    """Return a bound to three digits, rounded up so it stays true."""
    return NONE if number is None else rounded_up(number)


def size(amount: float | None) -> str:
    """Return bytes in decimal units."""
    if amount is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":  # noqa: PLR2004
            break
        amount /= 1000
    return f"{amount:.0f}{THIN}{unit}" if unit == "B" else f"{amount:.3g}{THIN}{unit}"


def duration(seconds: float | None) -> str:
    """Return seconds, minutes or hours."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.0f}{THIN}ms"
    if seconds < 99.95:  # noqa: PLR2004
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes}{THIN}min {rest}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def plural(number: int, noun: str) -> str:
    """Return `number` with `noun`, which takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def max_likelihood_ratio(guarantee: Guarantee) -> str:
    """Return e^ε, rounded up."""
    factor = math.exp(min(guarantee.epsilon, 700.0))
    if factor > MAX_FACTOR:
        return f"e^{rounded_up(guarantee.epsilon)}"
    return f"{math.ceil(factor):,}" if factor >= 10 else rounded_up(factor)  # noqa: PLR2004


def one_in(delta: float) -> str:
    """Return a probability as one in so many.

    The count has three digits and is rounded down, so the probability is rounded up.
    """
    if delta <= 0:
        return "0"
    # Decimals make a δ of 1e-5 exactly one in 100,000.
    times = Context(prec=3, rounding=ROUND_FLOOR).divide(Decimal(1), Decimal(repr(delta)))
    return f"1 in {int(times):,}"


def max_detection_rate(guarantee: Guarantee) -> str:
    """Return the largest share of participants that a test with 1 % of false alarms detects.

    (ε, δ) bounds the power of every test at a rate α of false alarms. The power is at most e^ε α +
    δ, and at most 1 − e^−ε (1 − δ − α). Sources: Wasserman and Zhou 2010, and Kairouz, Oh and
    Viswanath 2015.
    """
    epsilon, delta = min(guarantee.epsilon, 700.0), guarantee.delta
    most = min(
        math.exp(epsilon) * FALSE_ALARMS + delta,
        1 - math.exp(-epsilon) * (1 - delta - FALSE_ALARMS),
        1.0,
    )
    return _rate(most)


def detection_rates(
    guarantee: Guarantee, bounds: Sequence[MembershipBound]
) -> tuple[tuple[str, str], ...]:
    """Return rates of false alarms, with the largest share of participants that a test detects.

    Args:
        guarantee: The guarantee, which gives one rate by itself.
        bounds: Bounds by the accountant's whole curve, which are far lower, or none.
    """
    if not bounds:
        return (("1 in 100", max_detection_rate(guarantee)),)
    return tuple(
        (f"1 in {round(1 / each.false_positive_rate):,}", _rate(each.true_positive_rate))
        for each in bounds
    )


def _rate(most: float) -> str:
    """Return a largest share, rounded up."""
    return f"{min(100.0, math.ceil(most * 1000) / 10):.1f}{THIN}%"


def format_guarantee(guarantee: Guarantee) -> str:
    """Return ε and δ as text."""
    epsilon, delta = rounded_up(guarantee.epsilon), rounded_up(guarantee.delta)
    return f"ε = {epsilon}, δ = {delta}".replace(" = ", f"{THIN}={THIN}")
