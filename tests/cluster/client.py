"""Requests from a pod: a closed loop over some connections, until standard input ends.

Only the standard library, as the pod has the service's image. It prints `started`, and at the end a
line of JSON with what became of every request.
"""

import base64
import collections
import http.client
import json
import sys
import threading
import time

# Seconds; a request that takes as long is lost.
_TIMEOUT = 30


def main() -> None:
    """Run with the arguments host, port, connections, `keep` or `close`, token, and picture."""
    host, port, connections, mode, token, picture = sys.argv[1:]
    body = base64.b64decode(picture)
    headers = {"Content-Type": "image/png", "Connection": "keep-alive" if mode == "keep" else mode}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    stopping = threading.Event()
    outcomes: list[tuple[float, float, str]] = []

    def ask(connection: http.client.HTTPConnection) -> str:
        try:
            connection.request("POST", "/predictions/mnist", body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return repr(error)
        if response.status != 200:
            return f"{response.status} {text}"
        label = json.loads(text)["predictions"][0]["label"]
        return "" if label == 7 else f"label {label}"

    def run() -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
        while not stopping.is_set():
            begun = time.monotonic()
            problem = ask(connection)
            outcomes.append((begun, time.monotonic() - begun, problem))
            stopping.wait(0.05)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()
    problems = collections.Counter(problem for _, _, problem in outcomes if problem)
    slowest = max(seconds for _, seconds, _ in outcomes)
    print(json.dumps({"sent": len(outcomes), "problems": problems, "slowest": slowest}))


main()
