"""The page for annotating, served to this machine alone.

All addresses begin with a secret that the program prints. Pictures go by numbers, never by paths. What a page of
another site sends is refused: it knows no secret, its `Origin` is another, and under a name of its own that leads here
(DNS rebinding) the `Host` is.

| | |
|---|---|
| `GET /SECRET/` | the page |
| `GET /SECRET/queue?session=…` | the classes, and the pictures in the order in which they help |
| `GET /SECRET/items/N?session=…` | what is known of a picture, and what the model says |
| `GET /SECRET/items/N/picture`, `…/map` | the picture as seen, as JPEG; the model's map, as grey PNG |
| `POST /SECRET/items/N` | a save: `version`, `who`, and `label`, `rationales` and, if it changed, `mask`, or `skip` |

A save of a version that someone else saved since is answered by status 409, with the picture's item as it is.
"""

import hmac
import io
import json
import re
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from dataset_builders.maps import encode_png

from .store import KEEP, RATIONALES, StaleError, from_runs, to_runs
from .suggestions import place_in_queue, take_turns


PAGE = Path(__file__).with_name("page.html")
LARGEST_REQUEST = 16_000_000  # bytes; a mask of a large picture, drawn by hand, has some hundred thousand
BUSY = 300  # seconds for which a picture that someone opened is offered to no one else
HOSTS = ("127.0.0.1", "localhost")
KEYS = {"version", "who", "label", "rationales", "mask", "skip"}


class Refusal(Exception):
    """An answer that is an error, with its status, and what else it says."""

    def __init__(self, status, message, **more):
        super().__init__(message)
        self.status, self.content = status, {"error": " ".join(str(message).split()), **more}


class AnnotationServer(ThreadingHTTPServer):
    """Serves the annotations of a folder on 127.0.0.1.

    Args:
        annotations ([`~store.Annotations`]): an open one.
        port (`int`): 0 for any that is free.
        suggestions ([`~suggestions.Suggestions`], *optional*): what a model says.
        class_names (`list[str]`): the model's.
        name (`str`): what a person is called who gives no name.
    """

    daemon_threads = True

    def __init__(self, annotations, port=0, suggestions=None, class_names=(), name="me"):
        super().__init__(("127.0.0.1", port), Handler)
        self.annotations, self.suggestions, self.class_names, self.name = annotations, suggestions, class_names, name
        self.secret = secrets.token_urlsafe(24)
        self.opened = {}  # session to the picture that it shows, and since when
        self.page = PAGE.read_text(encoding="utf-8").replace("NONCE", self.secret).encode()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/{self.secret}/"

    def suggestion(self, number):
        return None if self.suggestions is None else self.suggestions.found.get(number)

    def queue(self, session):
        """What the page lists."""
        now = time.monotonic()
        busy = {number for one, (number, since) in self.opened.items() if one != session and now - since < BUSY}
        rows, turns = [], take_turns(self.annotations.items)
        for number, item in enumerate(self.annotations.items):
            place, reason = place_in_queue(item, self.suggestion(number), self.class_names)
            rows.append((place, turns[number], number, reason))
        items = [
            {
                "number": number,
                "name": self.annotations.items[number].file_name,
                "reason": reason,
                "done": self.annotations.items[number].done,
                "busy": number in busy,
            }
            for _, _, number, reason in sorted(rows)
        ]
        looked = None if self.suggestions is None else len(self.suggestions.found) + len(self.suggestions.failed)
        return {"items": items, "labels": self.annotations.labels, "name": self.name, "looked_at": looked}

    def item(self, number, session=None):
        """What the page shows of a picture."""
        if session is not None:
            self.opened[session[:64]] = number, time.monotonic()
        if self.suggestions is not None:
            self.suggestions.wanted = number
        picture = self.annotations.picture(number)
        with self.annotations.saving:  # the version and what it is of
            item = replace(self.annotations.items[number])
            mask = self.annotations.mask(number, picture)
        return {
            "number": number,
            "name": item.file_name,
            "size": picture.size,
            "version": item.version,
            "who": item.who,
            "when": item.when,
            "label": item.row.get("label"),
            "rationales": item.row.get(RATIONALES) or [],
            "mask": None if mask is None else to_runs(mask),
            "suggestion": self.said(number),
        }

    def said(self, number):
        """The model's answer, `{"error"}`, or `None` where it has not looked yet or there is no model."""
        suggestion = self.suggestion(number)
        if suggestion is None:
            failed = None if self.suggestions is None else self.suggestions.failed.get(number)
            return failed and {"error": failed}
        return {"label": suggestion.label, "score": suggestion.score, "rationale": suggestion.rationale}

    def save(self, number, body):
        """Take down what the page sends."""
        if not isinstance(body, dict) or not body.keys() <= KEYS:
            raise ValueError(f"expected an object with keys among {sorted(KEYS)}")
        if body.get("skip"):
            self.annotations.skip(number, body.get("version"), body.get("who"))
            return {}
        mask = body.get("mask", KEEP)
        if mask is not KEEP and mask is not None:
            mask = from_runs(mask, self.annotations.picture(number).size)
        said = [body.get(name) for name in ("version", "who", "label", "rationales")]
        self.annotations.save(number, *said, mask=mask)
        return {}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = 60  # seconds to wait for a client that says nothing

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def log_message(self, *arguments):
        """Nothing: the terminal shows the address alone."""

    def _answer(self, work):
        try:
            status, kind, content = 200, *work(*self._route())
        except Refusal as refusal:
            status, kind, content = refusal.status, *as_json(refusal.content)
        except (ValueError, OSError) as error:
            status, kind, content = 400, *as_json(Refusal(400, error).content)
        with suppress(ConnectionError):  # the page may be gone
            self._send(status, kind, content)

    def _send(self, status, kind, content):
        self.send_response(status)
        nonce = f"'nonce-{self.server.secret}'"
        policy = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src {nonce}; style-src {nonce}"
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy + "; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _route(self):
        """What is asked for: `(kind, number, part, session)`; a [`Refusal`] unless it comes from the page."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.partition(":")[0] not in HOSTS or origin not in (None, f"http://{host}"):
            raise Refusal(403, "requests from other sites are refused: open the address that the program printed")
        address = urlsplit(self.path)
        _, secret, path = (address.path + "//").split("/", 2)
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            raise Refusal(403, "the address is not the one that the program printed")
        found = re.fullmatch(r"(queue|items/([0-9]{1,9})(?:/(picture|map))?|)", path.rstrip("/"))
        number = int(found[2]) if found and found[2] else None
        if not found or number is not None and number >= len(self.server.annotations):
            raise Refusal(404, "there is nothing at this address")
        session = parse_qs(address.query).get("session", [None])[0]
        return found[1].partition("/")[0], number, found[3], session

    def _get(self, kind, number, part, session):
        server = self.server
        if kind == "":
            return "text/html; charset=utf-8", server.page
        if kind == "queue":
            return as_json(server.queue(session))
        if part == "picture":
            buffer = io.BytesIO()
            server.annotations.image(number).save(buffer, "JPEG", quality=92)
            return "image/jpeg", buffer.getvalue()
        if part == "map":
            suggestion = server.suggestion(number)
            if suggestion is None:
                raise Refusal(404, "the model has not looked at this picture yet")
            return "image/png", encode_png(Image.fromarray(suggestion.saliency))
        return as_json(server.item(number, session))

    def _post(self, kind, number, part, session):
        if kind != "items" or part is not None:
            raise Refusal(404, "there is nothing to save at this address")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "expected a body of type application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,15}", length):
            raise Refusal(411, "expected the body's length")
        if int(length) > LARGEST_REQUEST:
            raise Refusal(413, f"expected a body of at most {LARGEST_REQUEST:,} bytes, got {int(length):,}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"expected a body of JSON: {error}") from error
        try:
            return as_json(self.server.save(number, body))
        except StaleError as error:
            raise Refusal(409, error, item=self.server.item(number)) from error


def as_json(content):
    """The type and the bytes of an answer of JSON."""
    return "application/json", json.dumps(content, ensure_ascii=False).encode()
