"""The configuration of a stock buildmaster: a build of ten steps for one worker. Its result is written to a JSON file.

PB_PORT and RESULT are environment variables. `addChange` starts a build, as from a repository's hook.
"""
import json
import os

from buildbot.plugins import changes, schedulers, steps, util, worker
from buildbot.util.service import BuildbotService
from twisted.internet import defer, reactor


class Interrupted(steps.ShellCommand):
    """A command that is interrupted while it runs, as by the "stop" button."""

    def run(self):
        reactor.callLater(1, self.interrupt, "it has run for long enough")
        return super().run()

    def getResultSummary(self):
        return {"step": "interrupted"}


class Results(BuildbotService):
    name = "results"

    async def startService(self):
        await super().startService()
        self.consumer = await self.master.mq.startConsuming(self.built, ("builds", None, "finished"))

    def built(self, key, build):
        return defer.ensureDeferred(self.write(build))

    async def write(self, build):
        found = await self.master.data.get(("builds", build["buildid"], "steps"))
        told = {"results": build["results"], "steps": []}
        for step in found:
            logs = await self.master.data.get(("steps", step["stepid"], "logs"))
            text = ""
            for log in logs:
                content = await self.master.data.get(("logs", log["logid"], "contents"))
                text += content["content"]
            told["steps"].append({"name": step["name"], "results": step["results"], "log": text[-4000:], "size": len(text)})
        with open(os.environ["RESULT"] + ".new", "w") as out:
            json.dump(told, out)
        os.rename(os.environ["RESULT"] + ".new", os.environ["RESULT"])


def shell(name, command, **more):
    return steps.ShellCommand(name=name, command=command, logEnviron=False, **more)


LARGE = "head -c 3000000 /dev/zero | tr '\\0' 'x' > large"
factory = util.BuildFactory([
    steps.MakeDirectory(name="make", dir="build/made"),
    shell("greet", ["echo", "hello", "to you"], env={"NAME": "rust"}),
    shell("talk", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo aside >&2; " + LARGE),
    steps.FileExists(name="stat", file="build/large"),
    steps.FileUpload(name="upload", workersrc="large", masterdest="uploaded", blocksize=32 << 10),
    steps.FileDownload(name="download", mastersrc="uploaded", workerdest="back", blocksize=32 << 10),
    shell("compare", "cmp large back && exit 3", decodeRC={3: util.SUCCESS}),
    steps.CopyDirectory(name="copy", src="build", dest="copied"),
    Interrupted(name="interrupt", command="sleep 1000 & sleep 1000", logEnviron=False, flunkOnFailure=False, haltOnFailure=False),
    steps.RemoveDirectory(name="remove", dir="copied", alwaysRun=True),
])

c = BuildmasterConfig = {
    "workers": [worker.Worker("rusty", "rusty-pw")],
    "protocols": {"pb": {"port": "tcp:%s:interface=127.0.0.1" % os.environ["PB_PORT"]}},
    "change_source": [changes.PBChangeSource(user="hook", passwd="hook-pw")],
    "schedulers": [schedulers.AnyBranchScheduler(name="all", treeStableTimer=None, builderNames=["build"])],
    "builders": [util.BuilderConfig(name="build", workernames=["rusty"], factory=factory)],
    "services": [Results()],
    "db": {"db_url": "sqlite:///state.sqlite"},
    "buildbotNetUsageData": None,
}
