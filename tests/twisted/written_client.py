"""Uses the client that `credhost describe --python todo` has written."""
import importlib.util
import sys

from common import connect
from twisted.internet import defer, task


def load(path):
    spec = importlib.util.spec_from_file_location("todo_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def main(reactor, port, path):
    factory, connection = connect(reactor, int(port))
    todo = await load(path).Todo.login(factory, "alice", "alice-pw")
    assert await todo.add("milk") == 0
    await todo.done(0)
    assert await todo.list() == [{"text": "milk", "done": True}]
    assert await todo.clear() == 1
    connection.disconnect()
    print("the client works")


task.react(lambda reactor: defer.ensureDeferred(main(reactor, *sys.argv[1:])))
