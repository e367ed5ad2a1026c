"""A loss that does not fit one device is trained on several, in one process or in many."""

from functional_bp.shard.launch import Connection as Connection
from functional_bp.shard.launch import connect as connect
