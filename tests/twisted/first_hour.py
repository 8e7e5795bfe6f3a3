"""A Twisted programmer's first tries: prints the answers, and what each mistake looks like."""
import sys

from common import connect
from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer, task


async def show(what, deferred):
    try:
        print(f"{what} -> {await deferred!r}")
    except Exception as error:
        print(f"{what} !! {type(error).__module__}.{type(error).__name__}: {error}")


async def main(reactor, port, password):
    def login(name, password):
        factory, _ = connect(reactor, int(port))
        return factory.login(UsernamePassword(name, password))

    right = password.encode()
    todo = await login(b"alice/todo", right)
    await show('add("milk")', todo.callRemote("add", "milk"))
    await show("list()", todo.callRemote("list"))
    await show("done(0)", todo.callRemote("done", 0))
    await show("done(7)", todo.callRemote("done", 7))
    await show('done("first")', todo.callRemote("done", "first"))
    await show("add()", todo.callRemote("add"))
    await show('add("a", "b")', todo.callRemote("add", "a", "b"))
    await show('add(what="milk")', todo.callRemote("add", what="milk"))
    await show("fly()", todo.callRemote("fly"))
    await show("remind(0, 0), without a mind", todo.callRemote("remind", 0, 0))
    await show("login with a wrong password", login(b"alice/todo", b"wrong"))
    await show("login for a service that she has no key for", login(b"alice/chat", right))
    await show("login for another's perspective", login(b"alice/todo/bob", right))


task.react(lambda reactor: defer.ensureDeferred(main(reactor, *sys.argv[1:])))
