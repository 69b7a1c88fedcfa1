"""Runs in a client's pod: requests, until standard input ends.

Its argument is the JSON of a `Plan`. It prints `started`, and at the end a line of JSON: what
became of every request.
"""

import base64
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.traffic import Load, describe, keep_alive, open_loop


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        url: of a model.
        token: of the client.
        users: each sends a request when it has the answer to its last one.
        keep_alive: whether a user keeps its connection from request to request.
        idle: seconds between an answer and a user's next request.
        instances: how many times a request has `samples/seven.png`, in JSON; 0 is the file itself.
        rate: requests a second over as many connections as there are users, whatever the answers
            do; 0 is users who wait.
    """

    url: str
    token: str
    users: int = 4
    keep_alive: bool = True
    idle: float = 0.05
    instances: int = 0
    rate: float = 0.0

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @property
    def body(self) -> bytes:
        """Of each request."""
        seven = (Path(__file__).parent / "seven.png").read_bytes()
        if not self.instances:
            return seven
        image = {"b64": base64.b64encode(seven).decode()}
        return json.dumps({"instances": [image] * self.instances}).encode()


def main() -> None:
    """Send until standard input ends."""
    plan = Plan(**json.loads(sys.argv[1]))
    headers = f"Authorization: Bearer {plan.token}\r\n"
    if plan.rate:
        day = 86400.0
        users = [
            open_loop(plan.url, plan.body, plan.rate, day, connections=plan.users, headers=headers)
        ]
    else:
        user = keep_alive(
            plan.url,
            [plan.body],
            idle=plan.idle,
            headers=headers,
            one_connection=plan.keep_alive,
        )
        users = [user] * plan.users
    before = time.time() - time.monotonic()
    with Load(*users) as load:
        print("started", flush=True)
        sys.stdin.read()
    expected = b'"label": 7'
    problems = Counter(
        f"{outcome.status} {outcome.body.decode()[:200]}"
        for outcome in load.outcomes
        if outcome.status != 200 or expected not in (outcome.body or expected)
    )
    seconds = [
        (round(before + outcome.sent, 2), round(outcome.seconds, 4), outcome.status)
        for outcome in load.outcomes
    ]
    print(json.dumps(describe(load) | {"problems": problems, "requests": seconds}))


if __name__ == "__main__":
    main()
