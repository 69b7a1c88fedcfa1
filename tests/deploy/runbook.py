"""Commands of the runbook and the guide: here their form, in tests/cluster what they do."""

import re
import shlex

from tests.deploy.resources import MONITORING

RUNBOOK = MONITORING / "RUNBOOK.md"
GUIDE = MONITORING.parent / "README.md"
_COMMAND = re.compile(r"`(kubectl [^`]+)`|^ +(kubectl .+)$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"(?<=[/= ])(POD|NODE|N)\b")
_CHANGES = ("port-forward", "rollout undo", "rollout restart", "patch ", " scale ", "cordon")


def commands(section: str = "", **values: str) -> list[str]:
    """Each command once, in the order of the runbook.

    Args:
        section: that they are to be of, an alert's name; by default all.
        values: what stands for the placeholders POD, NODE and N.
    """
    text = RUNBOOK.read_text()
    if section:
        (text,) = [part for part in text.split("\n## ") if part.startswith(f"{section}\n")]
    found = (one or other for one, other in _COMMAND.findall(text))
    whole = (_PLACEHOLDER.sub(lambda match: values[match[1]], command) for command in found)
    return list(dict.fromkeys(" ".join(command.split()) for command in whole))


def looks(section: str = "", **values: str) -> list[str]:
    """Those commands that change nothing and end by themselves, as `commands`."""
    return [c for c in commands(section, **values) if not any(other in c for other in _CHANGES)]


def arguments(text: str, **values: str) -> list[str]:
    """What follows `kubectl` in the one command of the runbook that contains a text."""
    (command,) = [c for c in commands(**values) if text in c]
    return shlex.split(command)[1:]


def guide(heading: str = "") -> list[str]:
    """The commands of the sections of the guide whose heading begins so, each on one line."""
    sections = GUIDE.read_text().split("\n## ")[1:]
    text = "\n".join(part for part in sections if part.startswith(heading)).replace("\\\n", " ")
    return [" ".join(line[2:].split()) for line in text.splitlines() if line.startswith("$ ")]
