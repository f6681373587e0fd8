"""Labelled photos → a model folder. Needs the ``train`` extra (torch)."""

import os

# Threads that wait for the others sleep instead of spinning: on a machine that does anything else,
# spinning made a step several times slower. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
