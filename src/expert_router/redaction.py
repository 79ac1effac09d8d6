"""What can tell who asked is taken out of a text before it is kept.

By patterns, so it is no promise: names and postal addresses stay. Years, model names, times and prices are no one's and
stay too, since a question means something else without them. Every pattern takes time that grows with the text alone.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

_URL = re.compile(
    r"(?:\b[a-z][a-z0-9+.-]{1,20}://|\bwww\.|(?<![\w.@-])(?:[a-z0-9-]{1,63}\.){1,4}[a-z]{2,24}/)\S*[^\s.,;:!?)>'\"]",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_SAID_KEY = re.compile(
    r"\b((?:password|passwd|passphrase|api[ _-]?key|access[ _-]?token|token|secret)(?:\s*[:=]|\s+is:?)\s*|bearer\s+)"
    r"(?=\S*[\d_!@#$%^&*-])\S+",
    re.IGNORECASE,
)
_KEY = re.compile(  # of known services, then what looks drawn by lot
    r"\b(?:(?:sk|pk|rk|hf|gh[opsur]|github_pat|glpat|xox[abprs])[_-]|AIza|eyJ)[\w-]{0,40}\d[\w.-]{7,}"
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
    r"|(?<![\w-])(?=[A-Za-z_]{0,64}\d)(?=[\d_]{0,64}[A-Za-z])\w{16,}",
    re.IGNORECASE,
)
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9a-f:]{2,39}(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.IGNORECASE)
_DATE = re.compile(r"\(?\d{1,4}([./-])\d{1,2}\1\d{1,4}")
_PHONE = re.compile(
    r"(?<![\w.,])(?:\+\s?\(?\d(?:[\s().\-/]{0,3}\d){6,14}"  # +49 170 1234567
    r"|\(?0\d{1,5}\)?(?:[\s.\-/]{0,2}\d){5,12}"  # (020) 7946 0958
    r"|(?:1[\s.-])?(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]\d{4})(?![\w]|[.,]\d)"  # 555-123-4567
)
_GROUPED = re.compile(
    r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){3,7}(?:\s?[A-Z0-9]{1,3})?\b"  # a bank account
    r"|(?<![\w.,-])\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}(?![\w])"  # a card
    r"|(?<![\w.,-])\d{3}-\d{2}-\d{4}(?![\w])"
)
_NUMBER = re.compile(r"(?<![\d.,])\d{7,}(?!\d)")
_YEAR = re.compile(r"(?:1\d|20)\d\d")


def redact(text: str) -> str:
    """The text with ``[email]``, ``[url]``, ``[ip]``, ``[phone]``, ``[number]`` and ``[key]`` for what was there."""
    text = _URL.sub("[url]", text)
    text = _EMAIL.sub("[email]", text)
    text = _SAID_KEY.sub(r"\1[key]", text)
    text = _KEY.sub("[key]", text)
    text = _IP6.sub(_ip, _IP4.sub(_ip, text))
    text = _GROUPED.sub(_number, text)
    text = _PHONE.sub(_phone, text)
    return _NUMBER.sub(_number, text)


def _ip(found: re.Match[str]) -> str:
    """A time like 10:30:45 looks like an address and is none."""
    try:
        ip_address(found[0].strip())
    except ValueError:
        return found[0]
    return "[ip]" if re.search(r"\w", found[0]) else found[0]


def _phone(found: re.Match[str]) -> str:
    return found[0] if _DATE.fullmatch(found[0]) else "[phone]"


def _number(found: re.Match[str]) -> str:
    """Several years in a row and round counts, like 15000000, are not anyone's number."""
    groups = re.split(r"[ -]", found[0])
    years = len(groups) > 1 and all(_YEAR.fullmatch(group) for group in groups)
    return found[0] if years or found[0].endswith("0000") else "[number]"
