"""The node agent with real processes: what outlives what, what is started again, what is left behind."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from k8s.cluster import Ref, Retry
from k8s.desired import deployment_objects, deployment_refs
from k8s.local import logfile, store
from k8s.local.cluster import AGENT_LOCK, LocalCluster
from k8s.local.node import addresses
from k8s.observe import CRASH_LOOP, IMAGE_PULL_FAILED, NODE_LOST, START_FAILED, UNSCHEDULABLE
from tests.k8s.harness import DEPLOYMENT, POOL, TENANT, ask, is_gone, spec, until


def apply(place, **changes):
    results = place.cluster.apply(deployment_objects(spec(**changes), POOL))
    assert [result.error for result in results] == [None] * len(results)


def delete(place, grace_s=None):
    place.cluster.delete(deployment_refs(TENANT, DEPLOYMENT), grace_s=grace_s)


def session_of(pid):
    """Every process in the session that `pid` leads."""
    stats = {
        path.parent.name: path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")
    }
    return {int(member) for member, stat in stats.items() if stat[3] == str(pid) and stat[0] != "Z"}


def test_a_killed_agent_leaves_its_engines_and_the_next_one_adopts_them(place):
    place.start()
    apply(place, replicas=2)
    before = {pod.uid: ask(pod.address)["pid"] for pod in place.ready(2)}
    place.agent.kill()
    place.wait()
    assert {pod.uid: ask(pod.address)["pid"] for pod in place.pods()} == before
    place.start()
    time.sleep(1.5)
    assert {pod.uid: ask(pod.address)["pid"] for pod in place.ready(2)} == before
    assert [pod.restarts for pod in place.pods()] == [0, 0]


def test_an_adopted_engine_is_restarted_when_it_dies_and_ended_when_it_is_deleted(place):
    place.start()
    apply(place)
    [pod] = place.ready()
    place.agent.kill()
    place.wait()
    place.start()
    first = ask(pod.address)["pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: place.pods()[0].restarts == 1)
    [pod] = place.ready()
    second = ask(pod.address)["pid"]
    assert second != first
    delete(place)
    until(lambda: is_gone(second) and not place.pods())


def test_an_engine_that_died_while_no_agent_ran_is_started_again(place):
    place.start()
    apply(place)
    [pod] = place.ready()
    pid = ask(pod.address)["pid"]
    place.agent.kill()
    place.wait()
    os.kill(pid, signal.SIGKILL)
    place.start()
    until(lambda: place.pods()[0].restarts == 1)
    place.ready()


def test_a_delete_while_no_agent_runs_is_done_by_the_next_one(place):
    place.start()
    apply(place)
    [pod] = place.ready()
    pid = ask(pod.address)["pid"]
    place.agent.kill()
    place.wait()
    delete(place, grace_s=1)
    place.start()
    until(lambda: is_gone(pid) and not place.pods())


def test_sigterm_leaves_the_engines_and_sigint_ends_them_all(place):
    place.start()
    apply(place, replicas=2, fake={"child": True})
    pids = [ask(pod.address)["pid"] for pod in place.ready(2)]
    members = set.union(*(session_of(pid) for pid in pids))
    assert len(members) == 4
    place.signal(signal.SIGTERM)
    assert place.wait() == 0
    assert not any(is_gone(pid) for pid in members)
    place.start()
    place.ready(2)
    place.signal(signal.SIGINT)
    assert place.wait() == 0
    assert all(is_gone(pid) for pid in members)
    assert place.pods() == ()
    assert list((place.root / "pods").iterdir()) == []
    place.start()
    assert len(place.ready(2)) == 2


def test_a_second_sigint_does_not_wait_for_the_grace(place):
    place.start()
    apply(place, fake={"stubborn": True}, shutdown_timeout_s=60)
    pid = ask(place.ready()[0].address)["pid"]
    place.signal(signal.SIGINT)
    time.sleep(0.5)
    assert place.agent.poll() is None
    place.signal(signal.SIGINT)
    assert place.wait(5) == 0
    assert is_gone(pid)


def test_two_agents_never_run_on_one_root(place):
    place.start()
    command = [sys.executable, "-m", "k8s.local.agent", "--root", place.root, "--engines", place.engines]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert second.returncode == 1
    assert f"pid {place.agent.pid}" in second.stderr


def test_a_crash_is_retried_later_and_later_and_says_the_last_line(place):
    place.start()
    apply(place, fake={"crash": 3})
    until(lambda: place.pods() and place.pods()[0].restarts >= 3)
    state = until(lambda: place.container()["state"].get("waiting"))
    assert state["reason"] == "CrashLoopBackOff"
    assert place.container()["lastState"]["terminated"]["exitCode"] == 3
    [pod] = place.pods()
    assert pod.reason == CRASH_LOOP
    assert "cannot load the model" in pod.message
    restarts = pod.restarts
    time.sleep(0.8)
    assert place.pods()[0].restarts <= restarts + 1


def test_the_grace_of_a_delete_is_the_engines_to_use_and_no_more(place):
    place.start()
    apply(place, fake={"drain_s": 1.0}, pre_stop_s=1)
    [pod] = place.ready()
    pid, began = ask(pod.address)["pid"], time.monotonic()
    delete(place)
    time.sleep(0.5)
    assert place.pods()[0].terminating
    assert ask(pod.address)["pid"] == pid
    until(lambda: not place.pods())
    assert 2.0 <= time.monotonic() - began < 5.0


def test_an_engine_that_ignores_sigterm_is_killed_with_its_children_when_the_grace_is_over(place):
    place.start()
    apply(place, fake={"stubborn": True, "child": True})
    members = session_of(ask(place.ready()[0].address)["pid"])
    assert len(members) == 2
    began = time.monotonic()
    delete(place, grace_s=2)
    until(lambda: all(is_gone(pid) for pid in members))
    assert 1.0 <= time.monotonic() - began < 4.0
    until(lambda: not place.pods())


def test_the_children_of_a_crashed_engine_do_not_outlive_it(place):
    place.start()
    apply(place, fake={"child": True})
    pid = ask(place.ready()[0].address)["pid"]
    members = session_of(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: all(is_gone(member) for member in members))
    until(lambda: place.pods()[0].restarts == 1)
    assert ask(place.ready()[0].address)["pid"] != pid


def test_an_engine_that_turns_sick_loses_its_readiness_then_is_restarted(place):
    [item] = deployment_objects(spec(), POOL)
    container = item["spec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"] |= {"periodSeconds": 1, "failureThreshold": 1}
    container["livenessProbe"] |= {"periodSeconds": 1, "failureThreshold": 3}
    place.start()
    place.cluster.apply([item])
    [pod] = place.ready()
    sick = Path(ask(pod.address)["env"]["HOME"]) / "sick"
    sick.touch()
    until(lambda: place.pods()[0].reason == "ProbeFailed")
    assert not place.pods()[0].ready
    until(lambda: place.pods()[0].restarts == 1)
    assert "health check" in place.container()["lastState"]["terminated"].get("message", "health check")
    sick.unlink()
    place.ready()


def test_an_engine_that_never_gets_up_is_restarted_after_its_startup_budget(place):
    place.start()
    apply(place, fake={"sick": True}, startup_budget_s=2)
    until(lambda: place.pods() and place.pods()[0].restarts == 1)
    assert not place.pods()[0].ready


def test_an_engine_that_is_not_installed_is_named_with_the_way_out(place):
    place.start()
    apply(place, image="engine.moorage.local/absent:9")
    [pod] = until(lambda: [pod for pod in place.pods() if pod.reason == IMAGE_PULL_FAILED])
    assert "absent-9" in pod.message
    assert "make engine" in pod.message


def test_an_engine_without_its_program_says_so(place):
    place.start()
    apply(place, command=("no-such-program",))
    [pod] = until(lambda: [pod for pod in place.pods() if pod.reason == START_FAILED])
    assert "no-such-program" in pod.message


def test_a_port_that_is_taken_everywhere_is_named(place):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        place.start()
        apply(place, served_port=port)
        [pod] = until(lambda: [pod for pod in place.pods() if pod.reason == UNSCHEDULABLE])
        assert str(port) in pod.message
    place.ready()


def test_an_address_that_is_taken_is_passed_over(place):
    place.start()
    taken = list(addresses(place.root, "any"))[:200]
    others = []
    for address in taken:
        others.append(socket.socket())
        others[-1].bind((address, 8000))
        others[-1].listen()
    apply(place, replicas=2)
    assert not {pod.address.partition(":")[0] for pod in place.ready(2)} & set(taken)
    for other in others:
        other.close()


def test_an_engine_sees_its_manifests_environment_and_nothing_of_the_agents(place):
    place.start()
    apply(place, env={"FAKE": "{}", "RANK_ADDRESS": "$(POD_IP):1", "PRICE": "$$5", "OTHER": "$(UNKNOWN)"})
    [pod] = place.ready()
    told = ask(pod.address)
    env = told["env"]
    assert "MOORAGE_SECRET_KEY" not in env
    assert env["RANK_ADDRESS"] == f"{env['POD_IP']}:1"
    assert (env["PRICE"], env["OTHER"]) == ("$5", "$(UNKNOWN)")
    assert Path(env["HOME"]).is_relative_to(place.root.resolve() / "pods" / pod.uid)
    assert env["VLLM_ENGINE_READY_TIMEOUT_S"] == "60"
    assert told["argv"][1:] == ["/models/tiny", "--host", env["POD_IP"], "--port", "8000", "--shutdown-timeout", "2"]


def test_a_log_stays_bounded_while_the_engine_writes_on(place):
    place.start()
    apply(place, fake={"chatter": 3 * logfile.LOG_BYTES})
    [pod] = place.ready()
    folder = place.root / "pods" / pod.uid
    until(lambda: (folder / "log").stat().st_size <= logfile.LOG_BYTES)
    assert sum(path.stat().st_size for path in folder.glob("log*")) <= 2 * logfile.LOG_BYTES
    assert len(place.log(30).splitlines()) == 30


def test_a_node_whose_agent_is_silent_for_long_is_lost_but_not_at_once(place):
    place.start()
    apply(place)
    place.ready()
    place.agent.kill()
    place.wait()
    assert place.pods()[0].ready
    long_ago = time.time() - 60
    os.utime(place.root / AGENT_LOCK, (long_ago, long_ago))
    [pod] = place.pods()
    assert (pod.ready, pod.reason) == (False, NODE_LOST)


def test_a_removed_object_file_ends_its_engine(place):
    place.start()
    apply(place)
    pid = ask(place.ready()[0].address)["pid"]
    place.signal(signal.SIGTERM)
    place.wait()
    for path in (place.root / "objects").glob("*.json"):
        path.unlink()
    place.start()
    until(lambda: is_gone(pid))


def test_a_broken_object_file_stops_nothing(place):
    place.start()
    apply(place)
    pid = ask(place.ready()[0].address)["pid"]
    broken = place.root / "objects" / "Deployment.a.b.json"
    broken.write_text("{")
    time.sleep(2.5)
    assert place.agent.poll() is None
    assert not is_gone(pid)
    [result] = place.cluster.apply(deployment_objects(spec(generation=2), POOL))
    assert isinstance(result.error, Retry)
    assert str(broken) in result.error.message
    broken.unlink()
    place.ready()


@pytest.fixture
def full_disk(monkeypatch):
    """Every write of an object fails as on a full disk, in this process."""

    def refuse(path, _content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(store, "_replace", refuse)


def test_an_apply_on_a_full_disk_asks_to_try_again(tmp_path, full_disk):
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
    [result] = LocalCluster(tmp_path).apply([namespace])
    assert result.ref == Ref("v1", "Namespace", "", "a")
    assert isinstance(result.error, Retry)
    assert "No space left" in result.error.message


def test_the_agent_outlives_a_disk_that_takes_no_byte(place):
    place.start()
    apply(place)
    [pod] = place.ready()
    pid = ask(pod.address)["pid"]
    limits = resource.prlimit(place.agent.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(place.agent.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    assert place.agent.poll() is None
    assert place.pods()[0].restarts == 0, "nothing could be written"
    resource.prlimit(place.agent.pid, resource.RLIMIT_FSIZE, limits)
    until(lambda: place.pods()[0].restarts >= 1)
    assert ask(place.ready()[0].address)["pid"] != pid
