"""A new engine version on a real cluster: proven before the old one goes; where it fails, nobody notices."""

import threading
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.cluster.product import node_of
from tests.k8s.harness import until

pytestmark = pytest.mark.cluster
IMAGE = "engine.moorage.local/tiny"
ENGINE = Path(__file__).with_name("tiny_engine.py").read_text()
# By tag: what lies behind the image; the first is the one that the product starts with.
VERSIONS = {
    "2": ENGINE,
    "3": ENGINE,
    "deaf": ENGINE.replace('self._answer({"status": "well"})', "self.send_error(503)"),
    "broken": "#!/bin/sh\nexit 3\n",
}
CARDS = 3
UPDATED_WITHIN_S = 150
names = count()


@pytest.fixture(scope="module", autouse=True)
def pool(product):
    """Three cards on as many nodes, and every version at hand."""
    for tag, text in VERSIONS.items():
        program = product.folder / "nodes" / f"tiny-{tag}" / "bin" / "vllm"
        program.parent.mkdir(parents=True)
        program.write_text(text)
        program.chmod(0o755)
    product.site.start(*(node_of("enflame", number) for number in range(CARDS)))


@pytest.fixture
def endpoint(product, request):
    """A running endpoint of so many replicas of the first version; its id and its deployment's."""
    product.prefer("enflame")
    endpoint_id = product.create(f"updates-{next(names)}", replicas=request.param)
    deployment_id = product.deployment(endpoint_id)
    until(lambda: view(product, endpoint_id)["serving"] == request.param, 90)
    yield endpoint_id, deployment_id
    product.delete(endpoint_id)
    product.moorage.until_phase(endpoint_id, "deleted", 120)
    assert product.leftovers(deployment_id) == ([], [], [(0, False, 0)])
    product.moorage.assert_books()


def view(product, endpoint_id):
    return product.moorage.call("GET", f"/endpoints/{endpoint_id}").body


def images(pods):
    return {pod["spec"]["containers"][0]["image"] for pod in pods}


def live(pods):
    return {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


@contextmanager
def customer(product, endpoint_id):
    """Somebody who asks all the time, until the block ends; what the answers were."""
    answers, ended = [], threading.Event()

    def ask():
        while not ended.wait(0.2):
            answers.append(product.moorage.chat(endpoint_id).status)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        ended.set()
        asking.join()


def roll_out(product, endpoint_id, deployment_id, tag):
    """Move the pool to another version and look on until it runs alone; how many pods lived at once, most and fewest.

    No replica is ended before as many new ones have proven themselves, but for those that have to make room.
    """
    old = live(product.pods(deployment_id))
    spare = len(old) == CARDS
    product.prefer("enflame", f"{IMAGE}:{tag}")
    counts = []

    def is_done():
        pods = product.pods(deployment_id)
        now = live(pods)
        [(proven,)] = product.moorage.query(
            "SELECT count(*) FROM replica WHERE deployment_id = %s AND serving_at IS NOT NULL AND pod_uid <> ALL(%s)",
            deployment_id,
            list(old),
        )
        assert len(old - now) <= proven + spare
        counts.append(len(now))
        seen = view(product, endpoint_id)
        return images(pods) == {f"{IMAGE}:{tag}"} and (seen["phase"], seen["serving"]) == ("running", len(old))

    until(is_done, UPDATED_WITHIN_S)
    return max(counts), min(counts)


@pytest.mark.parametrize("endpoint", [1, 2], indirect=True)
def test_an_update_surges_where_a_card_is_free_and_customers_notice_nothing(product, endpoint):
    replicas = len(product.pods(endpoint[1]))
    with customer(product, endpoint[0]) as answers:
        assert roll_out(product, *endpoint, "2") == (replicas + 1, replicas)
    assert set(answers) == {200}


@pytest.mark.parametrize("endpoint", [CARDS], indirect=True)
def test_an_update_recreates_one_after_another_where_no_card_is_free(product, endpoint):
    with customer(product, endpoint[0]) as answers:
        most, fewest = roll_out(product, *endpoint, "3")
    assert most == CARDS
    assert fewest >= CARDS - 1
    assert set(answers) == {200}


@pytest.mark.parametrize("endpoint", [2], indirect=True)
def test_a_version_that_never_gets_ready_leaves_the_old_replicas_serving(product, endpoint):
    endpoint_id, deployment_id = endpoint
    old = live(product.pods(deployment_id))
    with customer(product, endpoint_id) as answers:
        product.prefer("enflame", f"{IMAGE}:deaf")
        until(lambda: f"{IMAGE}:deaf" in images(product.pods(deployment_id)), 60)
        assert product.moorage.until_phase(endpoint_id, "updating", 60)["serving"] == 2
        product.prefer("enflame", f"{IMAGE}:broken")
        assert product.moorage.until_phase(endpoint_id, "update_failed", 60)["serving"] == 2
        # Longer than a new engine is given to prove itself.
        time.sleep(20)
        assert old <= live(product.pods(deployment_id))
        product.prefer("enflame")
        product.moorage.until_phase(endpoint_id, "running", 60)
    assert live(product.pods(deployment_id)) == old
    assert set(answers) == {200}
