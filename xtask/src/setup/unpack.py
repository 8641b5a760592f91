"""Unpacks the members of one wheel that libtorch needs.

usage: unpack.py WHEEL FOLDER RULE...

A rule is `flat:REGEX` (a member whose whole path matches goes to FOLDER/lib under its own name)
or `tree:PREFIX` (members below PREFIX keep their path relative to PREFIX's parent).
Every rule has to match at least one member, so a wheel laid out differently is noticed here.
"""

import os
import re
import shutil
import sys
import zipfile

wheel, folder, *rules = sys.argv[1:]
rules = [rule.split(":", 1) for rule in rules]
matched = set()


def target(member):
    for kind, pattern in rules:
        if kind == "flat" and re.fullmatch(pattern, member):
            matched.add(pattern)
            return os.path.join(folder, "lib", os.path.basename(member))
        if kind == "tree" and member.startswith(pattern):
            matched.add(pattern)
            parent = os.path.dirname(pattern.rstrip("/"))
            return os.path.join(folder, os.path.relpath(member, parent))
    return None


with zipfile.ZipFile(wheel) as archive:
    for member in archive.infolist():
        path = None if member.is_dir() else target(member.filename)
        if path is None:
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with archive.open(member) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)

missing = [pattern for _, pattern in rules if pattern not in matched]
if missing:
    sys.exit(f"{wheel} holds nothing that matches {', '.join(missing)}")
