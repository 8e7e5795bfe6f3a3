"""A to-do list for everyone.

Written by `credhost describe --python todo`. Needs Twisted."""

from __future__ import annotations

import datetime
import decimal
from typing import Any, Dict, List, Set, Tuple, TypedDict

from twisted.cred.credentials import UsernamePassword
from twisted.internet.defer import Deferred
from twisted.spread import pb


class Task(TypedDict):
    """One thing to do."""

    # The text.
    text: str

    # Whether it is done.
    done: bool


class Bell(pb.Referenceable):
    """Rings for a client that wants to be reminded.

    Derive from it, and give one as the mind."""

    def remote_ring(self, text: str) -> None:
        """A task is due."""
        raise NotImplementedError


class Todo:
    """One list of tasks, numbered from 0."""

    def __init__(self, perspective: pb.RemoteReference) -> None:
        self.perspective = perspective

    @classmethod
    def login(
        cls,
        factory: pb.PBClientFactory,
        name: str,
        password: str,
        mind: pb.Referenceable | None = None,
        perspective: str | None = None,
    ) -> Deferred[Todo]:
        """Logs in by a factory that connects, as with reactor.connectTCP(host, port, factory)."""
        path = [name, "todo"] + ([perspective] if perspective else [])
        credentials = UsernamePassword("/".join(path).encode(), password.encode())
        return factory.login(credentials, mind).addCallback(cls)

    def add(self, text: str) -> Deferred[int]:
        """Adds a task. Returns its number."""
        return self.perspective.callRemote("add", text)

    def list(self) -> Deferred[List[Task]]:
        """Returns all tasks."""
        return self.perspective.callRemote("list")

    def done(self, number: int, done: bool | None = None) -> Deferred[None]:
        """Marks a task as done, or as not done after all.

        Raises todo.NoSuchTask."""
        return self.perspective.callRemote("done", number, done)

    def clear(self) -> Deferred[int]:
        """Removes the tasks that are done. Returns how many were removed."""
        return self.perspective.callRemote("clear")

    def remind(self, number: int, seconds: int) -> Deferred[None]:
        """Calls the client's object when the time is up.

        Raises todo.NoSuchTask."""
        return self.perspective.callRemote("remind", number, seconds)
