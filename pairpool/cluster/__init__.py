"""Batches of a call on the nodes of a Dask cluster: `node` runs there, all else where the call is made."""
