"""What runs in the caller: the loop, the jobs, the sizes of batches, and the crew."""
