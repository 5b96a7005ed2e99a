"""Sampling seeds that depend on where a call stands and on nothing else."""

import hashlib


def call_seed(run_seed: int, patient_id: str, path: str, kind: str, index: int) -> int:
    """The sampling seed of a call: the same for the same place in the same run's trees."""
    name = f"{run_seed}|{patient_id}|{path}|{kind}|{index}"
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # some samplers want a non-negative int32
