"""A captive portal: answers every request by HTTP with a redirection to its page. Standard library only.

    portal.py PORT
"""

import http.server
import sys


class Portal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "http://portal.test/login")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Portal)
    print("ready", flush=True)
    server.serve_forever()
