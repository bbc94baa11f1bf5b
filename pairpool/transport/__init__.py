"""Move data between the processes: packets, descriptors, large payloads and pickles."""
