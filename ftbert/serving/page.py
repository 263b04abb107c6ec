"""The page at `/`: one self-contained file, allowed by its headers to load nothing and to talk to this server alone."""

import base64
import hashlib
import os
import re
from typing import Tuple

__all__ = ["HEADERS", "HTML"]


def _read() -> bytes:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html"), "rb") as file:
        return file.read()


def _sources(tag: str, html: bytes) -> str:
    """The Content-Security-Policy sources for the page's own inline elements of that kind."""
    bodies = re.findall(("<%s>(.*?)</%s>" % (tag, tag)).encode(), html, re.S)
    return " ".join("'sha256-%s'" % base64.b64encode(hashlib.sha256(body).digest()).decode() for body in bodies)


HTML: bytes = _read()

HEADERS: Tuple[Tuple[str, str], ...] = (
    (
        "Content-Security-Policy",
        # The style attribute that draws a score's bar is set through the DOM, which the policy allows.
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "script-src %s; style-src %s" % (_sources("script", HTML), _sources("style", HTML)),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)
