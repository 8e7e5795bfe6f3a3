"""A client on Twisted 26.10 that notices nothing while the library of its service is replaced, once for each given version."""
import os

from common import UsernamePassword, connect, defer, main, pb, trap


class Mind(pb.Referenceable):
    asked = 0

    def remote_ask(self):
        self.asked += 1
        return self.asked


async def reload(reactor, port, library, *versions):
    factory, connector = connect(reactor, int(port))
    mind = Mind()
    account = await factory.login(UsernamePassword(b"alice/ledger", b"alice-pw"), mind)
    lost = []
    account.notifyOnDisconnect(lost.append)
    thing = await account.callRemote("thing")
    named = await account.callRemote("named", "lamp")
    number = 0
    for count, version in enumerate(versions, 1):
        # Calls are in flight while the file is put in place.
        calls = []
        for _ in range(200):
            number += 1
            calls.append(account.callRemote("next", number))
        os.rename(version, library)
        expected = os.path.basename(version)
        while await account.callRemote("mode") != expected:
            number += 1
            calls.append(account.callRemote("next", number))
        answers = await defer.gatherResults(calls)
        assert answers == list(range(number - len(calls) + 1, number + 1)), answers
        assert await account.callRemote("ask") == count == mind.asked
        assert await named.callRemote("who") == "lamp of " + expected
    await trap(thing.callRemote("touch"), "twisted.spread.pb.DeadReferenceError")
    assert await account.callRemote("total") == (number, 0)
    assert await account.callRemote("story") == (1, 0, len(versions))
    assert not lost
    account.dontNotifyOnDisconnect(lost.append)
    connector.disconnect()


main(reload)
