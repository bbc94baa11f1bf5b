"""`pairpool stress --hostile`: tasks that attack the pool from inside their workers, and a check of everything else.

siege.py ── starts rounds ──► round.py (a process of its own: the master)
   ▲                             │ opens a pool
   │                             ├── innocents.py ── calls whose values are known
   │                             └── attack.py (in the workers) ── packets.py, acts.py ──► channel
   │                                         │                └── boards.py ──► scoreboard
   └──────────────── record.py ◄─────────────┘
                     what each attack did, in memory that outlives the master
"""
