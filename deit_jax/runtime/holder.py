"""Who holds a folder: what a lock records of its process, and how a person reads it."""

import datetime
import os
import socket
from typing import Any


def ourselves() -> dict[str, Any]:
    """This process, its host, and now."""
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since}


def holder_text(record: dict[str, Any]) -> str:
    """A record of `ourselves` for people; "another process" where it does not say which."""
    try:
        return f"process {record['process']} on {record['host']} since {record['since']}"
    except (KeyError, TypeError):
        return "another process"
