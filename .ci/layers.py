#!/usr/bin/env python3
"""Checks the direction of dependencies between the crates of this workspace (normal and build dependencies).

core depends on nothing of ours; kernels on core; a backend on core and kernels; model on core and registry. Dev-dependencies
are free. A crate that the table does not name may depend on anything.
"""

import json
import subprocess
import sys

ALLOWED = {
    "tersor-core": set(),
    "tersor-kernels": {"tersor-core"},
    "tersor-backend-*": {"tersor-core", "tersor-kernels"},
    "tersor-abi": {"tersor-core"},
    "tersor-pool": {"tersor-core"},
    "tersor-registry": {"tersor-core", "tersor-abi", "tersor-pool"},
    "tersor-conformance": {"tersor-core"},
    "tersor-model": {"tersor-core", "tersor-registry"},
}

meta = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps"]))
ours = {p["name"] for p in meta["packages"]}
wrong, seen = [], set()
for package in meta["packages"]:
    name = package["name"]
    rule = "tersor-backend-*" if name.startswith("tersor-backend-") else name
    if rule in ALLOWED:
        seen.add(rule)
        deps = {d["name"] for d in package["dependencies"] if d["kind"] != "dev"} & ours
        wrong += [f"{name} depends on {d}" for d in sorted(deps - ALLOWED[rule])]
wrong += [f"no crate is called {rule}" for rule in sorted(ALLOWED.keys() - seen)]
sys.exit("\n".join(wrong) or None)
