"""Who is published: the listeners that have a record in the space that is served."""

from itertools import islice

import redis

from features.errors import Unavailable
from features.keys import Keys
from features.pointer import read_pointer

_COUNT = 5_000  # names that Redis looks at in one step


def published_listeners(client: redis.Redis, keys: Keys, *, most: int) -> list[str]:
    """Their user ids, in order of the alphabet; of more than `most`, that many that Redis named first.

    Raises:
        Unavailable: the store cannot be reached.
    """
    try:
        pointer = read_pointer(client, keys)
        if pointer is None:
            return []
        names = client.scan_iter(match=keys.records_pattern(pointer.space_id), count=_COUNT)
        return sorted(name.decode().rpartition(":")[2] for name in islice(names, most))
    except (redis.exceptions.RedisError, OSError) as error:
        raise Unavailable(f"the store cannot be reached: {error}") from error
