"""What the server of a page refuses, since no page of ours asks for it."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse


def is_own(host):
    """Whether a name or address is this machine's own, which nobody else can reach."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """
    An ASGI middleware that refuses requests by status 403.

    Args:
        app: What answers the others.
        own (`bool`): Whether the server is for this machine alone. Then requests by another name are refused, to which
            a site could lead a browser here, and those of other sites' pages, which can send what they cannot read.
            Browsers tell by `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/); a link to the page is followed.
    """

    def __init__(self, app, own):
        self.app, self.own = app, own

    async def __call__(self, scope, receive, send):
        why = self._refused(scope) if scope["type"] == "http" else None
        answer = self.app if why is None else PlainTextResponse(why, 403)
        await answer(scope, receive, send)

    def _refused(self, scope):
        if any(f"file{mark}http" in scope["path"] for mark in "=/"):
            return "Nothing is fetched from elsewhere."  # as Gradio would
        if not self.own:
            return None
        headers = Headers(scope=scope)
        if not is_own(_name(headers.get("host", ""))):
            return "This page goes by the name of this machine alone."
        followed = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed:
            return "Another site's page asks for this."
        return None


def _name(host):
    """The name in a `Host` header, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def names_elsewhere(data):
    """Whether a file anywhere in what a request holds is an address, which Gradio would fetch."""
    if isinstance(data, dict):
        path = data.get("path")
        return isinstance(path, str) and "://" in path or any(map(names_elsewhere, data.values()))
    return isinstance(data, list) and any(map(names_elsewhere, data))
