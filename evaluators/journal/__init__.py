"""The journal of evaluations: the file that is cache, log and history in one."""
