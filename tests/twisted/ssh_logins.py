"""Logs in by SSH COUNT times, four at once, on Twisted's conch. Prints the seconds that it took."""

import sys
import time

from twisted.conch.ssh import connection, keys, transport, userauth
from twisted.internet import defer, endpoints, protocol, task

port, name, file, count = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3], int(sys.argv[4])
key = keys.Key.fromFile(file)


class Transport(transport.SSHClientTransport):
    def verifyHostKey(self, host, fingerprint):
        return defer.succeed(True)

    def connectionSecure(self):
        self.requestService(Login(name, Connection()))

    def connectionLost(self, reason):
        done, self.factory.done = self.factory.done, None
        if done:
            done.errback(Exception("the connection is lost before anybody is logged in"))


class Login(userauth.SSHUserAuthClient):
    preferredOrder = [b"publickey"]

    def getPublicKey(self):
        return key.public()

    def getPrivateKey(self):
        return defer.succeed(key)


class Connection(connection.SSHConnection):
    def serviceStarted(self):
        done, self.transport.factory.done = self.transport.factory.done, None
        self.transport.loseConnection()
        done.callback(None)


async def logins(reactor, left):
    while left:
        left.pop()
        factory = protocol.Factory.forProtocol(Transport)
        factory.done = done = defer.Deferred()
        await endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
        await done


async def main(reactor):
    began, left = time.monotonic(), [None] * count
    await defer.gatherResults([defer.ensureDeferred(logins(reactor, left)) for _ in range(4)])
    print(f"{time.monotonic() - began:.2f}")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
