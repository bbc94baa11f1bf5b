"""A pool on the workers of a Dask cluster: `ClusterPool`."""

from pairpool.dask.pool import *  # noqa: F403
