"""ZooKeeper, as commands use it: connecting, with a clear error when nobody answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deployd_core.cli.output import message
from deployd_core.coordination import Link
from deployd_core.errors import ConfigError, Unavailable
from deployd_core.zookeeper.address import split_address
from deployd_core.zookeeper.chroot import ensure_chroot, require_chroot
from deployd_core.zookeeper.session import Session

if TYPE_CHECKING:
    from deployd_core.cli.settings import Settings
    from deployd_core.spec import ServiceSpec
    from deployd_core.zookeeper.services import ServiceRecord


@contextmanager
def connected(settings: Settings, *, create: bool = False) -> Iterator[Session]:
    """A session with the ZooKeeper that the settings name; says so when that takes more than a second.

    Args:
        settings: Where it is, and how long to try.
        create: Whether to create the chroot, instead of saying that it is missing.

    Raises:
        ConfigError: The address is not one, or a file that says who we are is wrong.
        Unavailable: It does not answer in time.
        NotFound: It has no such chroot.
    """
    if not settings.debug:
        logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # it speaks of every attempt
    hosts, chroot = split_address(settings.zookeeper_address)
    session = Session(hosts, chroot, identity=settings.zookeeper_identity)
    _tell_of_breaks(session)
    try:
        hint = f"is it running? The address is {settings.zookeeper_origin}; another one: --zookeeper HOST:PORT/CHROOT"
        session.start(timeout=settings.connect_timeout, waiting=lambda why: message(f"deployd: {why}"), hint=hint)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; gave up after {settings.connect_timeout}", hint=error.hint) from error
    try:
        if create:
            ensure_chroot(session)
        else:
            require_chroot(session)
        yield session
    finally:
        session.close()


def _tell_of_breaks(session: Session) -> None:
    """Say when ZooKeeper goes away, and when it is back: what is shown meanwhile is old, and nothing else says so."""
    away = False

    def tell(link: Link) -> None:
        nonlocal away
        if link is Link.SUSPENDED and not away:
            away = True
            message(f"deployd: ZooKeeper at {session.hosts} does not answer any more; waiting for it")
        elif link is Link.CONNECTED and away:
            away = False
            message(f"deployd: ZooKeeper at {session.hosts} answers again")

    session.listen(tell)


def require_spec(record: ServiceRecord) -> ServiceSpec:
    """The spec of a service.

    Raises:
        ConfigError: Its node is empty, or holds something else.
    """
    if record.spec is None:
        why = f"cannot be read: {record.problem}" if record.problem else "is empty"
        raise ConfigError(f"the spec of {record.service} {why}", hint=f"deployd services apply {record.service}.toml")
    return record.spec
