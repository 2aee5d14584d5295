"""Serves the page of the release that this file belongs to."""

import http.server
import pathlib
import sys

PORT, HOST = int(sys.argv[1]), sys.argv[2]
RELEASE = pathlib.Path(__file__).resolve().parent
PAGE = (RELEASE / "page.html").read_text() + f"<p>served by {HOST} from {RELEASE.name}</p>\n"


class Shop(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Shop).serve_forever()
