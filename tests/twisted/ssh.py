"""Twisted's conch: checks the host's key, logs in with a key, runs a command, and prints its output and its status."""

import sys

from twisted.conch.client.knownhosts import KnownHostsFile
from twisted.conch.endpoints import SSHCommandClientEndpoint
from twisted.conch.ssh.keys import Key
from twisted.internet import defer, protocol, task
from twisted.python.filepath import FilePath


class Printer(protocol.Protocol):
    def connectionMade(self):
        self.ended, self.text = defer.Deferred(), b""

    def dataReceived(self, data):
        self.text += data

    def connectionLost(self, reason):
        self.ended.callback(getattr(reason.value, "exitCode", None) or 0)


def trusted(known):
    """The one host of a file of OpenSSH's; conch has no ports there."""
    with open(known) as file:
        host = Key.fromString(file.read().split(" ", 1)[1].strip())
    hosts = KnownHostsFile(FilePath(known + ".conch"))
    hosts.addHostKey(b"127.0.0.1", host)
    return hosts


async def main(reactor, port, name, key, known, *words):
    endpoint = SSHCommandClientEndpoint.newConnection(
        reactor, " ".join(words).encode(), name.encode(), "127.0.0.1", int(port),
        keys=[Key.fromFile(key)], knownHosts=trusted(known), ui=None,
    )
    printer = await endpoint.connect(protocol.Factory.forProtocol(Printer))
    status = await printer.ended
    print(printer.text.decode(), end="")
    print("status", status)


task.react(lambda reactor: defer.ensureDeferred(main(reactor, *sys.argv[1:])))
