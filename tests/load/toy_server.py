"""A server with the contract of xor and its metrics, and optionally with a fault.

python -m tests.load.toy_server PORT [wrong | malformed | uncounted | cut]
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Toy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served = 0
    fault = ""

    def do_GET(self) -> None:
        samples = {
            "inference_requests_total": 'model="xor",version="1.0",code="200"',
            "serving_responses_total": 'model="xor",code="2xx"',
        }
        lines = [
            f"# TYPE {name} counter\n{name}{{{labels}}} {Toy.served}\n"
            for name, labels in samples.items()
        ]
        self.reply("".join(lines).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        predictions = []
        for a, b in body["instances"]:
            label = (a ^ b) ^ (Toy.fault == "wrong")
            probabilities = [0.9, 0.1] if label == 0 else [0.1, 0.9]
            predictions.append({"label": label, "confidence": 0.9, "probabilities": probabilities})
        Toy.served += Toy.fault != "uncounted"
        document = {"predictions": predictions if Toy.fault != "malformed" else "none"}
        self.reply(json.dumps(document).encode(), missing=int(Toy.fault == "cut"))

    def reply(self, body: bytes, missing: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection |= missing > 0

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    Toy.fault = "".join(sys.argv[2:])
    Server(("127.0.0.1", int(sys.argv[1])), Toy).serve_forever()
