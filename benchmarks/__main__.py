"""`make bench`: every benchmark that this machine can run, one after the other."""

import subprocess
import sys

BENCHMARKS = (
    "metrics",
    "concare",
    "expert",
    "salience",
    "learner",
    "main_job",
    "sync",
    "served_share",
    "search",
    "answers",
    "waiting_threads",
)


def main() -> None:
    """Runs them all; the first failure ends it."""
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
