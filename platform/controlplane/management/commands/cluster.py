"""`manage.py cluster add|list|orphans|remove`: the Kubernetes clusters that endpoints are placed on."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from django.core.management.base import BaseCommand, CommandError

from inference import clusters, orphans
from inference.models import ClusterAccess, Pool
from k8s.cluster import UnreachableError
from kernel.problems import Problem

ACTOR = "operator"


class Command(BaseCommand):
    help = "Add a Kubernetes cluster with its pools, list the clusters, find what no row accounts for, or remove one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add = actions.add_parser("add", help="keep a cluster's credentials and pools, or bring both up to date")
        add.add_argument("name")
        add.add_argument("--region", required=True, help="the region that the cluster is")
        add.add_argument("--kubeconfig", required=True, type=Path, help="of an account with k8s/client/rights.yaml")
        add.add_argument("--context", help="a context of the kubeconfig (default: its current one)")
        add.add_argument(
            "--pools", required=True, type=Path, help="YAML list of pools; what nodes tell may be left out"
        )
        actions.add_parser("list", help="clusters, whether they answer, and their pools")
        loose = actions.add_parser("orphans", help="what our tenants have in a cluster that is not in this database")
        loose.add_argument("name")
        loose.add_argument("--delete", action="store_true", help="delete it: no other database may be its owner")
        remove = actions.add_parser("remove", help="forget a cluster that no endpoint is on")
        remove.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            acts = {"add": self._add, "list": self._list, "orphans": self._orphans, "remove": self._remove}
            acts[options["action"]](options)
        except Problem as problem:
            raise CommandError(problem.detail) from problem
        except UnreachableError as error:
            raise CommandError(f"the cluster does not answer: {error}") from error

    def _add(self, options: dict[str, Any]) -> None:
        from k8s.client.kubeconfig import standalone

        path: Path = options["kubeconfig"]
        try:
            kubeconfig = standalone(_yaml(path, dict), path.parent, context=options["context"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        pools = clusters.cluster_add(
            name=options["name"],
            region=options["region"],
            kubeconfig=kubeconfig,
            pools=_yaml(options["pools"], list),
            actor=ACTOR,
        )
        self.stdout.write(
            f"cluster {options['name']} of region {options['region']} answers and gives all rights needed"
        )
        self._print(pools)

    def _list(self, options: dict[str, Any]) -> None:
        for access in ClusterAccess.objects.order_by("name"):
            state = orphans.cluster_state(access.name)
            said = f"does not answer: {state.silence}" if state.silence else f"{state.nodes} nodes"
            self.stdout.write(f"{access.name}  region {access.region}  {said}")
            self._print(Pool.objects.filter(cluster=access.name).order_by("name"))

    def _orphans(self, options: dict[str, Any]) -> None:
        name = options["name"]
        if options["delete"]:
            found, said = orphans.orphans_delete(name=name, actor=ACTOR), "deleted"
        else:
            found, said = orphans.orphans_list(clusters.cluster(name).list()), "found"
        self.stdout.write("\n".join([*map(str, found), f"{len(found)} {said}"]))

    def _remove(self, options: dict[str, Any]) -> None:
        clusters.cluster_remove(name=options["name"], actor=ACTOR)
        self.stdout.write(f"cluster {options['name']} is forgotten; what is in it was left as it is")

    def _print(self, pools: Any) -> None:
        for pool in pools:
            resource = pool.resource_name or "engine slots"
            self.stdout.write(f"  pool {pool.name}: {pool.reserved} of {pool.capacity} {resource} in use, {pool.arch}")


def _yaml(path: Path, kind: type) -> Any:
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(value, kind):
        raise CommandError(f"{path} holds no {'list of pools' if kind is list else 'kubeconfig'}")
    return value
