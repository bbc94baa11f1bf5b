"""What passes between the processes: packets and descriptors, large payloads, pickles, and the status board."""
