"""QEMU's reading of the arguments of -netdev, -device and the like, by its documented rules: commas part, and two
commas are one in a value; each part is ``key=value``, but the first may be the value alone, of the key that is implied;
a later word without ``=`` is an option that is switched on. What begins with a brace is a JSON object. No option may
come twice.
"""

import json
import re

_KEY = re.compile(r"([^=,]*)=")
_VALUE = re.compile(r"(?:[^,]|,,)*", re.DOTALL)


def _once(pairs):
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"an option comes twice: {names}")
    return dict(pairs)


def parse(argument, implied):
    """Option -> value: a str, or with JSON what that says. *implied* is the key of a first value that stands alone."""
    if argument.startswith("{"):
        return json.loads(argument, object_pairs_hook=_once)
    pairs, at = [], 0
    while at < len(argument):
        key = _KEY.match(argument, at)
        value = _VALUE.match(argument, key.end() if key else at)
        text = value[0].replace(",,", ",")
        pairs.append((key[1], text) if key else (text, "on") if pairs else (implied, text))
        at = value.end() + 1
    return _once(pairs)


def parse_argv(argv):
    """What a NIC is made of, in order: netdev and device as a rule, and in front of a few what those need."""
    return tuple(parse(argument, _IMPLIED[option]) for option, argument in zip(argv[::2], argv[1::2], strict=True))


_IMPLIED = {"-add-fd": "", "-chardev": "backend", "-netdev": "type", "-device": "driver"}
