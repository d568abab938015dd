# SPDX-License-Identifier: MIT
"""`make gpu-check`: everything that needs a GPU, in one command, or in several that go on from each other's report.

- `cases`: what each op computes here, as functions of their tensors.
- `subject`: the checks of one op, in a process of its own, so that a kernel that faults takes no other down.
- `models`: the same for the sampler, a captured training pass and the check on first use.
- `sanitizer`: compute-sanitizer over every op, and over one wrong access that it must find.
- `workloads`, `rows`: what is timed, with gates and goals, against the measured limits of the card.
- `report`: what was found, written to a file after every step.
"""
