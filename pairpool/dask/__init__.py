"""A pool on the workers of a Dask cluster: `ClusterPool`."""

from pairpool.dask.options import NodeOptions
from pairpool.dask.pool import ClusterPool
from pairpool.dask.results import ClusterResult, ClusterStream
from pairpool.errors import ClusterMismatch

__all__ = ["ClusterMismatch", "ClusterPool", "ClusterResult", "ClusterStream", "NodeOptions"]
