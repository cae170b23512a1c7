"""Workers on a Ray cluster: the pool, its workers, the division of work, retries and jobs."""
