"""Drives the service `buildmaster`, whose worker is an unmodified buildbot-worker.

        buildmaster.py PORT COMMANDS RELOADS RELOAD...      RELOAD... is the command that reloads the service

Runs COMMANDS commands on all builders of the worker at once, while the service is reloaded at least RELOADS times. Nothing is
lost or doubled, and the worker keeps its first connection.
"""
import asyncio
import sys

from common import connect, main

from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer, protocol, task

LINES = 5


class Process(protocol.ProcessProtocol):
    def __init__(self):
        self.done, self.said = defer.Deferred(), b""

    def outReceived(self, data):
        self.said += data

    errReceived = outReceived

    def processEnded(self, reason):
        self.done.callback((reason.value.exitCode, self.said))


async def run(reactor, *command):
    process = Process()
    reactor.spawnProcess(process, command[0], list(command), env=None)
    return await process.done


async def until(reactor, ask):
    """Repeats a request until its answer is true. Each request follows the previous answer, without a delay."""
    while True:
        found = await ask()
        if found:
            return found


async def builder(reactor, desk, name, ids):
    for number in ids:
        script = "for line in %s; do echo %s $line; done" % (" ".join(map(str, range(1, LINES + 1))), number)
        await until(reactor, lambda: desk.callRemote("start", "worker", name, number, script))
        await until(reactor, lambda: ended(desk, number))


async def ended(desk, number):
    command = await desk.callRemote("command", number)
    return command if command and command["ended"] else None


async def reloads(reactor, count, command, still):
    done = 0
    while done < count or still():
        code, said = await run(reactor, *command)
        assert code == 0, said
        done += 1
    return done


async def drive(reactor, port, commands, count, *reload):
    commands, count = int(commands), int(count)
    factory, connection = connect(reactor, int(port))
    desk = await factory.login(UsernamePassword(b"driver", b"driver-pw"))

    async def known():
        info, builders = await desk.callRemote("worker", "worker")
        return (info, builders) if len(builders) == 8 else None

    info, builders = await until(reactor, known)
    assert info["version"] and info["numcpus"] >= 1 and "shell" in info["worker_commands"], info

    # One command is interrupted.
    assert await desk.callRemote("start", "worker", "b0", "slow", "sleep 1000; echo never")
    await desk.callRemote("interrupt", "worker", "b0", "slow")
    slow = await until(reactor, lambda: ended(desk, "slow"))
    assert slow["rc"] != 0 and slow["stdout"] == "", slow

    finished = []
    share = [["c%d" % number for number in range(at, commands, 8)] for at in range(8)]
    work = [defer.ensureDeferred(builder(reactor, desk, "b%d" % at, share[at])) for at in range(8)]
    work = defer.gatherResults(work).addCallback(finished.append)
    done = await reloads(reactor, count, reload, lambda: not finished)
    await work
    wrong = [entry for entry in await desk.callRemote("wrong", LINES) if entry[0] != "slow"]
    assert not wrong, wrong[:3]
    started, over, keepalives = await desk.callRemote("counts")
    assert (started, over) == (commands + 1, commands + 1), (started, over)
    assert keepalives > 0, "the worker says that it is there"
    print("%d commands, %d reloads, 0 lost, 0 doubled, %d keep-alives" % (commands, done, keepalives))
    connection.disconnect()


main(drive)
