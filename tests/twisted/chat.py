"""Two clients on Twisted 26.10 in one room: the service calls each when the other does something."""
from common import UsernamePassword, connect, defer, main, pb, trap


class Ear(pb.Referenceable):
    def __init__(self):
        self.queue = defer.DeferredQueue()

    def remote_heard(self, who, text):
        self.queue.put(("heard", who, text))
        return "I hear you"

    def remote_came(self, who):
        self.queue.put(("came", who))

    def remote_went(self, who):
        self.queue.put(("went", who))


async def chat(reactor, port):
    alices, bobs = Ear(), Ear()
    first, one = connect(reactor, int(port))
    second, two = connect(reactor, int(port))
    alice = await first.login(UsernamePassword(b"alice/chat", b"alice-pw"), alices)
    bob = await second.login(UsernamePassword(b"bob/chat", b"bob-pw"), bobs)
    assert await alices.queue.get() == ("came", "bob")
    assert await bob.callRemote("present") == ["alice", "bob"]
    assert await alice.callRemote("say", "hello") == 2
    assert await bobs.queue.get() == ("heard", "alice", "hello")
    assert await alices.queue.get() == ("heard", "alice", "hello")
    assert await bob.callRemote("ask", "alice", "there?") == "I hear you"
    assert await alices.queue.get() == ("heard", "bob", "there?")
    await trap(bob.callRemote("ask", "carol", "there?"), "chat.NotPresent")
    two.disconnect()
    assert await alices.queue.get() == ("went", "bob")
    assert await alice.callRemote("present") == ["alice"]
    one.disconnect()


main(chat)
