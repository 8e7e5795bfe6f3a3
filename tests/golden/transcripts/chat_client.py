"""A chat room: for clients of IRC, and for clients that pass an object to be notified.

Written by `credhost describe --python chat`. Needs Twisted."""

from __future__ import annotations

import datetime
import decimal
from typing import Any, Dict, List, Set, Tuple, TypedDict

from twisted.cred.credentials import UsernamePassword
from twisted.internet.defer import Deferred
from twisted.spread import pb


class Ear(pb.Referenceable):
    """Is notified of what happens in the room. Optional.

    Derive from it, and give one as the mind."""

    def remote_told(self, who: str, text: str) -> None:
        """Somebody has said something to this guest only."""
        raise NotImplementedError

    def remote_came(self, who: str) -> None:
        """Somebody has come."""
        raise NotImplementedError

    def remote_went(self, who: str) -> None:
        """Somebody has gone."""
        raise NotImplementedError

    def remote_heard(self, who: str, text: str) -> Any:
        """Somebody asks only this guest, and receives the answer."""
        raise NotImplementedError


class Chat:
    """A guest's view of the room."""

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
    ) -> Deferred[Chat]:
        """Logs in by a factory that connects, as with reactor.connectTCP(host, port, factory)."""
        path = [name, "chat"] + ([perspective] if perspective else [])
        credentials = UsernamePassword("/".join(path).encode(), password.encode())
        return factory.login(credentials, mind).addCallback(cls)

    def say(self, text: str) -> Deferred[int]:
        """Says something to everybody, including the caller. Returns how many are notified."""
        return self.perspective.callRemote("say", text)

    def ask(self, who: str, text: str) -> Deferred[Any]:
        """Says something to one guest. Returns what their client answers.

        Raises chat.NotPresent."""
        return self.perspective.callRemote("ask", who, text)

    def tell(self, who: str, text: str) -> Deferred[None]:
        """Says something to one person, by any of their doors.

        Raises chat.NotPresent."""
        return self.perspective.callRemote("tell", who, text)

    def present(self) -> Deferred[List[str]]:
        """Who is present, each once."""
        return self.perspective.callRemote("present")
