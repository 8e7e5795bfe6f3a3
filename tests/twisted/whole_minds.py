"""Real Twisted 26.10 logs in with minds that are not a single object: a dictionary, a list, a copyable, each with objects in it.
The service calls these objects, before and after it is replaced.

    whole_minds.py PORT COMMAND...       a host with `exchange`; the command that replaces it
"""
import gc
import subprocess
import weakref

from boats import Boat
from common import UsernamePassword, connect, defer, main, pb, trap
from twisted.internet.threads import deferToThread


class Ear(pb.Referenceable):
    def __init__(self, name):
        self.name, self.heard = name, []

    def remote_hear(self, text):
        self.heard.append(text)
        return "%s heard %s" % (self.name, text)


class Profile(pb.Copyable):
    def getTypeToCopyFor(self, perspective):
        return b"shop.Profile"


async def gone(ears):
    """Waits until nothing holds the client's objects: the host has released each as often as it was sent."""
    while gc.collect() or any(ear() is not None for ear in ears):
        await defer.ensureDeferred(pause())


async def pause():
    done = defer.Deferred()
    from twisted.internet import reactor

    reactor.callLater(0.01, done.callback, None)
    await done


async def whole_minds(reactor, port, *command):
    ears = [Ear(name) for name in ("left", "right", "third")]
    left, right, third = ears
    profile = Profile()
    profile.name, profile.ears = "copyable", [left, right]
    factory, connection = connect(reactor, int(port))
    named = UsernamePassword(b"alice/exchange", b"alice-pw")
    avatar = await factory.login(UsernamePassword(b"alice", b"alice-pw"), {"name": "kept", "ears": [left, right]})
    desks = {
        "dictionary": (await factory.login(named, {"name": "dictionary", "ears": [left, right, left]}), [left, right, left]),
        "copyable": (await factory.login(named, profile), [left, right]),
        "none": (await factory.login(named, {"name": "none", "ears": []}), []),
        "kept": (await avatar.callRemote("attach", "exchange", "alice"), [left, right]),
        "again": (await avatar.callRemote("attach", "exchange", "alice", {"name": "again", "ears": [third]}), [third]),
    }

    async def ask(text):
        for name, (desk, heard_by) in desks.items():
            said = await desk.callRemote("ears", text)
            assert said == [name] + ["%s heard %s" % (ear.name, text) for ear in heard_by], (name, said)

    await ask("one")
    # A mind of another kind is an error that says so.
    plain, _ = await factory.login(named, left), None
    message = await trap(plain.callRemote("ears", "x"), "builtins.TypeError", "TypeError")
    assert "mind" in message, message
    for round in ("two", "three"):
        await deferToThread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        await ask(round)
    # A mind that is too large is refused.
    message = await trap(factory.login(named, {"name": "x" * 20000, "ears": [left]}), "builtins.TypeError", "TypeError")
    assert "16384" in message, message
    # A cached object is followed from its login on, whatever code serves; an avatar's goes to one service.
    boat = Crewed()
    sailing = await factory.login(named, boat)
    for knots in (6.0, 7.0):
        await boat.go(knots)
        assert await sailing.callRemote("aboard") == knots
        await deferToThread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        assert await sailing.callRemote("aboard") == knots
        await boat.go(knots + 0.5)
        assert await sailing.callRemote("aboard") == knots + 0.5
    # The new code also follows it for the desk.
    await sailing.callRemote("forget")
    assert boat.observers, "the mind has it"
    del sailing
    while boat.observers:
        await defer.ensureDeferred(pause())
    # Two that share what they have are read within their mind, whenever that is, and changed before.
    fleet = [Crewed(), Crewed()]
    fleet[0].crew = fleet[1].crew = ["ahab", "ishmael"]
    admiral = await factory.login(named, fleet)
    await fleet[1].go(8.0)
    await fleet[0].go(4.0)
    assert await admiral.callRemote("fleet") == [4.0, 8.0]
    await deferToThread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    await fleet[0].go(9.0)
    assert await admiral.callRemote("fleet") == [9.0, 8.0]
    await admiral.callRemote("forget")
    del admiral
    while any(boat.observers for boat in fleet):
        await defer.ensureDeferred(pause())
    # Once the client drops its perspectives, the host releases the client's objects.
    held = [weakref.ref(ear) for ear in ears]
    del ears, left, right, third, profile, avatar, plain
    desks.clear()
    await gone(held)
    print("whole")
    connection.disconnect()


class Crewed(Boat):
    def __init__(self):
        super().__init__(5.0)

    def state(self):
        return {**super().state(), "crew": getattr(self, "crew", None)}


main(whole_minds)
