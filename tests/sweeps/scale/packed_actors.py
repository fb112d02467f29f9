"""Many of Tune's actors in a few processes, for simulations: what Ray would start a process for is an object."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.air.execution._internal import RayActorManager
from ray.tune.execution import tune_controller


class Host:
    """A process that holds many actors; calls of one actor come one after another, those of several side by side."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}

    def create(self, key: int, actor_class: type, arguments: dict[str, Any]) -> None:
        """Make an actor."""
        self._held[key] = actor_class(**arguments)

    def call(self, key: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """One of its methods; `stop` is the last of them."""
        actor = self._held.pop(key) if method == "stop" else self._held[key]
        return getattr(actor, method)(*arguments, **named)


class _Method:
    def __init__(self, host: Any, key: int, name: str) -> None:
        self._host, self._key, self._name = host, key, name

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self._host.call.remote(self._key, self._name, arguments, named)


class _Handle:
    """What Tune takes for an actor's handle."""

    def __init__(self, host: Any, key: int, actor_class: type, arguments: dict[str, Any]) -> None:
        self._host, self._key = host, key
        self._created = host.create.remote(key, actor_class, arguments)

    def __getattr__(self, name: str) -> Any:
        if name == "__ray_ready__":
            return _Ready(self._created)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Method(self._host, self._key, name)


class _Ready:
    def __init__(self, created: Any) -> None:
        self._created = created

    def remote(self) -> Any:
        return self._created


class _PackedClass:
    """What Tune takes for a class of actors, with its place in a placement group given by `options`."""

    __class__ = ray.actor.ActorClass  # type: ignore[assignment]

    def __init__(self, actor_class: type, hosts: Iterator[Any], keys: Iterator[int]) -> None:
        self._actor_class, self._hosts, self._keys = actor_class, hosts, keys

    def options(self, **_: Any) -> _PackedClass:
        return self

    def remote(self, **arguments: Any) -> _Handle:
        return _Handle(next(self._hosts), next(self._keys), self._actor_class, arguments)


@contextmanager
def packed_actors(actor_class: type, num_hosts: int, at_once: int) -> Iterator[None]:
    """While this lasts, Tune's trials of `actor_class` live in `num_hosts` processes, `at_once` of them at one time."""
    host_class = ray.remote(num_cpus=0, max_concurrency=2 * at_once)(Host)
    hosts = [host_class.remote() for _ in range(num_hosts)]
    packed = _PackedClass(actor_class, itertools.cycle(hosts), itertools.count())

    class PackedActors(RayActorManager):  # type: ignore[misc]  # Ray ships no types
        """Tune's manager, which starts ours in place of the class that Tune gives it."""

        def add_actor(self, cls: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ARG002 -- it is `actor_class`
            return super().add_actor(packed, *arguments, **named)

    before = tune_controller.RayActorManager
    tune_controller.RayActorManager = PackedActors
    try:
        yield
    finally:
        tune_controller.RayActorManager = before
        for host in hosts:
            ray.kill(host)
