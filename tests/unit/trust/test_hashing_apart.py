"""Secrets are hashed aside, a few at a time: each hash keeps 16 MiB where it was made."""

import asyncio
import threading

from nuage.trust.secrets import HASHING_THREADS, hash_secret, verify_secret, while_others_run


async def test_many_log_ins_at_once_take_few_threads_and_none_of_the_others() -> None:
    stored = hash_secret("correct horse battery")
    at_work: set[str] = set()

    def verify() -> bool:
        at_work.add(threading.current_thread().name)
        return verify_secret("correct horse battery", stored)

    asked = asyncio.gather(*(while_others_run(verify) for _ in range(12)))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: True), timeout=10)
    assert all(await asked)
    assert len(at_work) <= HASHING_THREADS
