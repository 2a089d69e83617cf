"""How is a moment written in an object, and how is it read back to the same number?

Inside the program a moment is seconds since the epoch; in a cluster it is RFC 3339 text in UTC. The fraction keeps all
digits of the number, so that what was recorded reads back exactly. Proleptic Gregorian calendar, no leap seconds, as
POSIX counts.
"""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Annotated

from pydantic import Field

DAY_S = 86_400
_ERA_DAYS, _EPOCH_DAY = 146_097, 719_468
"""Days of 400 years; days from 0000-03-01, where the count of an era begins, to 1970-01-01."""

_TEXT = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?Z$")

Timestamp = Annotated[str, Field(max_length=40, pattern=_TEXT.pattern, json_schema_extra={"format": "date-time"})]
"""A moment in UTC, such as 2026-11-21T10:58:28.5Z."""


@lru_cache(maxsize=4096)
def to_timestamp(at_s: float) -> str:
    """RFC 3339 text of a moment, with the digits that tell it from every other float. `at_s` is 0 or later."""
    whole, _, fraction = f"{Decimal(repr(at_s)):f}".partition(".")
    days, second = divmod(int(whole), DAY_S)
    year, month, day = _civil(days)
    digits = fraction.rstrip("0")
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{year:04}-{month:02}-{day:02}T{clock}{'.' + digits if digits else ''}Z"


@lru_cache(maxsize=4096)
def to_epoch_s(text: str) -> float:
    """Seconds since the epoch of such a text; ValueError names a text that is none."""
    found = _TEXT.match(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is no moment in UTC; write one such as 2026-11-21T10:58:28Z")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    whole = _days(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second
    return float(f"{whole}.{found.group(7) or 0}")


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a count of days since 1970-01-01. Years begin in March, so that February ends them."""
    era, day_of_era = divmod(days + _EPOCH_DAY, _ERA_DAYS)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return 400 * era + year_of_era + (month <= 2), month, day


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * _ERA_DAYS + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - _EPOCH_DAY
