"""Commands of the runbook and the guide: here their form, in tests/cluster what they do."""

import re
import shlex

from tests.deploy.resources import MONITORING

RUNBOOK = MONITORING / "RUNBOOK.md"
GUIDE = MONITORING.parent / "README.md"
_COMMAND = re.compile(r"`(kubectl [^`]+)`|^ +(kubectl .+)$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"(?<=[/= ])(POD|NODE|N)\b")


def commands(**values: str) -> list[str]:
    """Each command once, in the order of the runbook.

    Args:
        values: what stands for the placeholders POD, NODE and N.
    """
    found = (one or other for one, other in _COMMAND.findall(RUNBOOK.read_text()))
    whole = (_PLACEHOLDER.sub(lambda match: values[match[1]], command) for command in found)
    return list(dict.fromkeys(" ".join(command.split()) for command in whole))


def arguments(text: str, **values: str) -> list[str]:
    """What follows `kubectl` in the one command of the runbook that contains a text."""
    (command,) = [c for c in commands(**values) if text in c]
    return shlex.split(command)[1:]


def guide(heading: str = "") -> list[str]:
    """The commands of the sections of the guide whose heading begins so, each on one line."""
    sections = GUIDE.read_text().split("\n## ")[1:]
    text = "\n".join(part for part in sections if part.startswith(heading)).replace("\\\n", " ")
    return [" ".join(line[2:].split()) for line in text.splitlines() if line.startswith("$ ")]
