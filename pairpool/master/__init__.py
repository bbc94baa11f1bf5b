"""The part of a pool that runs in the process of its caller: event loop, jobs, dispatcher, supervisor."""
