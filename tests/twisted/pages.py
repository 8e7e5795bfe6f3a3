"""Real Twisted 26.10 receives and sends SIZE bytes in pages:    pages.py PORT SIZE"""
from common import connect, main

from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer
from twisted.spread import pb, util


class Collector(pb.Referenceable):
    def __init__(self):
        self.total, self.done = 0, defer.Deferred()

    def remote_gotPage(self, page):
        self.total += len(page)

    def remote_endedPaging(self):
        self.done.callback(None)


class Source(pb.Referenceable):
    """Sends pages as the connection accepts them."""

    def remote_send(self, collector, size):
        class Pager(util.Pager):
            left = size

            def nextPage(self):
                page = b"z" * min(65536, self.left)
                self.left -= len(page)
                if not self.left:
                    self.stopPaging()
                return page

        Pager(collector)


async def both(reactor, port, size):
    size = int(size)
    factory, connection = connect(reactor, int(port))
    desk = await factory.login(UsernamePassword(b"alice", b"alice-pw"))
    collector = Collector()
    await desk.callRemote("getPages", collector, size, 65536)
    await collector.done
    assert collector.total == size, collector.total
    assert await desk.callRemote("collect", Source(), size) == (size, True)
    connection.disconnect()
    print("all came")


main(both)
