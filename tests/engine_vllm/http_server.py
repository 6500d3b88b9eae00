"""A real HTTP server in this process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def served(app: Any, **settings: Any) -> AsyncIterator[tuple[Any, int]]:
    """Uvicorn with the app, and its port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **settings))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        yield server, listening.getsockname()[1]
        server.should_exit = True
        await task
