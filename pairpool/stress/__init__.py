"""`pairpool stress`: a seeded mix of tasks, a process that kills workers meanwhile, and a check of every outcome.

plan.py ── slices ──► clients.py ── calls ──► Pool ──► tasks.py (in the workers)
                          │                    ▲
                          ▼                    │ signals
checks.py ◄── outcome_log.py ◄── outcomes.py  killer.py (a process of its own)
    ▲                                          ▲
    └───────────── campaign.py ── one byte for each kill that is due ──┘
"""
