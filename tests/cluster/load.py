"""Runs in a client's pod: keep-alive or single requests, until standard input ends.

With the URL, the number of users, `keep` or `close`, and the token as arguments, it sends the image
beside it. It prints `started`, and at the end a line of JSON: what became of every request.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from tests.reliability.traffic import Load, describe, keep_alive

# Seconds between an answer and a user's next request.
IDLE = 0.05


def main() -> None:
    """Send until standard input ends."""
    url, users, mode, token = sys.argv[1:]
    body = (Path(__file__).parent / "seven.png").read_bytes()
    user = keep_alive(
        url,
        [body],
        idle=IDLE,
        headers=f"Authorization: Bearer {token}\r\n",
        one_connection=mode == "keep",
    )
    with Load(*[user] * int(users)) as load:
        print("started", flush=True)
        sys.stdin.read()
    problems = Counter(
        f"{outcome.status} {outcome.body.decode()[:200]}"
        for outcome in load.outcomes
        if outcome.status != 200 or b'"label": 7' not in outcome.body
    )
    print(json.dumps(describe(load) | {"problems": problems}))


if __name__ == "__main__":
    main()
