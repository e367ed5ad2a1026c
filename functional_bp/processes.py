"""Processes of one program talk beside JAX: who is there, who ended, do all say the same.

JAX's own runtime connects the devices, and notices after a while that a process is gone; what it
says then is a page of C++. So the processes hold plain TCP connections too, a star around process
0, on which they meet before JAX is started and compare what they are about to run. The system
closes the connections of a process that ends, however it ends: the others know at once, say which
one it was, and end with status 1 wherever they are, in a collective operation too.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from functional_bp.errors import ProcessesError, compose

LOOPBACK = ("127.0.0.1", "localhost")
PATIENCE_SECONDS = 300.0  # until a process that should come is given up
NEWS_SECONDS = 2.0  # that the news of a lost process may take, once a collective has failed
WRITING_SECONDS = 15.0  # that a process which ends may go on to write a checkpoint


class Peer:
    """Another process, at the end of a connection: messages of JSON, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._incoming = connection.makefile("r", encoding="utf-8")
        self.inbox: queue.Queue[Any] = queue.Queue()

    def send(self, **message: Any) -> None:
        """A message is sent; that the other side is gone is noticed by who listens."""
        with contextlib.suppress(OSError), self._sending:
            self._connection.sendall((json.dumps(message) + "\n").encode())

    def receive(self) -> dict[str, Any]:
        """The next message; an empty one where the other side is gone or a stranger."""
        try:
            message = json.loads(self._incoming.readline())
        except (OSError, ValueError):
            return {}
        return message if isinstance(message, dict) else {}

    def forget(self) -> None:
        """A forked child gives its copy of the connection up, which would outlive this process."""
        os.close(self._connection.fileno())

    def close(self) -> None:
        """Nothing is sent or received any more."""
        self._incoming.close()
        self._connection.close()


class Star:
    """Process 0 is connected to every other process.

    Args:
        index: of this process.
        count: of all processes.
        address: "host:port", where process 0 listens.
        facts: of this process, for the others to know.
        timeout_seconds: until all must have come.

    Attributes:
        facts: of every process, by index.
        lost: set when another process has failed, and was told of.

    Raises:
        ProcessesError: a process did not come in time, two have one index, or process 0 cannot
            listen or be reached.
    """

    def __init__(
        self, index: int, count: int, address: str, facts: Mapping[str, Any], timeout_seconds: float
    ) -> None:
        self.index, self.count, self._timeout = index, count, timeout_seconds
        self._until = time.monotonic() + timeout_seconds
        self._peers: dict[int, Peer] = {}
        self._left: set[int] = set()
        self._all_left, self._ending = threading.Event(), threading.Lock()
        self.lost = threading.Event()
        host, _, port = address.rpartition(":")
        mine = {**facts, "index": index, "count": count}
        self.facts: list[dict[str, Any]] = [mine]
        try:
            if index == 0:
                came = self._gather(host, int(port))
                self.facts += [came[k] for k in range(1, count)]
                self._send(facts=self.facts)
            else:
                self._peers[0] = self._reach(host.strip("[]"), int(port))
                self._peers[0].send(**mine)
                self.facts = self._welcome()
        except ProcessesError:
            for peer in self._peers.values():
                peer.close()
            raise
        for k, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(k, peer), daemon=True).start()

    def _gather(self, host: str, port: int) -> dict[int, dict[str, Any]]:
        """What the others say of themselves, by index."""
        came: dict[int, dict[str, Any]] = {}
        with _listening(host, port) as listening:
            while len(came) < self.count - 1:
                listening.settimeout(max(0.01, self._until - time.monotonic()))
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    raise self._absent(came) from None
                connection.settimeout(10)
                peer = Peer(connection)
                said = peer.receive()
                if not {"index", "count"} <= said.keys():
                    peer.close()  # a stranger
                    continue
                connection.settimeout(None)
                if said["count"] != self.count or said["index"] in {0, *came}:
                    self._peers[-1] = peer
                    raise self._misfit(said)
                came[said["index"]], self._peers[said["index"]] = said, peer
        return came

    def _absent(self, came: Mapping[int, Any]) -> ProcessesError:
        absent = [k for k in range(1, self.count) if k not in came]
        return self._told(ProcessesError(
            f"{named(absent)} never joined", got=f"{named([0, *sorted(came)])} of {self.count}",
            expected=f"all of them within {self._timeout:.0f} s",
            do="look at what they printed: most often one failed before shard.connect()"
        ))  # fmt: skip

    def _misfit(self, said: Mapping[str, Any]) -> ProcessesError:
        return self._told(ProcessesError(
            "the processes are not those of one run",
            got=f"one more process {said['index']} of {said['count']} ({_whereabouts(said)})",
            expected=f"one process for each index from 1 to {self.count - 1}",
            do="look at what starts them, and whether an earlier run still waits"
        ))  # fmt: skip

    def _told(self, error: ProcessesError) -> ProcessesError:
        self._send(ended=str(error))
        return error

    def _reach(self, host: str, port: int) -> Peer:
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=10)
            except OSError as error:  # process 0 may come later
                if time.monotonic() > self._until:
                    raise ProcessesError(
                        f"process {self.index} cannot reach process 0", where=f"{host}:{port}",
                        got=f"{error.strerror or error}, for {self._timeout:.0f} s",
                        do="does process 0 run, and does the network let this port through?"
                    ) from error  # fmt: skip
                time.sleep(0.05)
            else:
                connection.settimeout(None)
                return Peer(connection)

    def _welcome(self) -> list[dict[str, Any]]:
        """The facts of all, once they have come; process 0 says who did not."""
        said = self._peers[0].receive()
        if "facts" in said:
            return said["facts"]
        raise ProcessesError(
            said.get("ended", "process 0 ended while processes waited for each other"),
            where=f"process {self.index}", do="look at what the others printed"
        )  # fmt: skip

    def _send(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def _listen(self, k: int, peer: Peer) -> None:
        """Take what process k sends, until it ends."""
        while message := peer.receive():
            if "ended" in message:
                self._end(message["ended"])
            elif "left" in message:
                self._leaves(k)
            else:
                peer.inbox.put(message)
        peer.close()
        if k not in self._left:
            name = f"process {k} of {self.count} ({_whereabouts(self.facts[k])})"
            self._end(f"{name} ended without a word: killed, out of memory, or crashed")

    def _leaves(self, k: int) -> None:
        self._left.add(k)
        if self.index == 0 and len(self._left) == self.count:
            self._send(left=True)
        if self.index != 0 or len(self._left) == self.count:
            self._all_left.set()

    def _end(self, what: str) -> None:
        """Another process failed: say so, and end this one too."""
        if not self._ending.acquire(blocking=False):
            return
        if self.index == 0:
            self._send(ended=what)
        told = compose(
            what, where=f"process {self.index} of {self.count}, which ends too",
            do="look at what that process printed last; a run with checkpoints, started again on\n"
            "            any number of processes, goes on from the last of them"
        )  # fmt: skip
        self.lost.set()
        exit_at_once(f"\n{told}\n")

    def fail(self, why: str) -> None:
        """This process ends by an error: the others say so and end too."""
        if self._ending.acquire(blocking=False):
            self._send(ended=f"process {self.index} of {self.count} failed: {why}")

    def leave(self) -> None:
        """This process is done, and waits for the others: it ends with them if one fails."""
        if not self._ending.locked():
            self._send_left()
            self._all_left.wait(PATIENCE_SECONDS)

    def _send_left(self) -> None:
        if self.index == 0:
            self._leaves(0)
        else:
            self._peers[0].send(left=True)

    def forget(self) -> None:
        """A forked child, as a loader's, is not this process."""
        self.part()
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # is closed
                peer.forget()

    def part(self) -> None:
        """What happens to the others ends this process no more."""
        self._ending.acquire(blocking=False)

    def exchange(self, what: str, text: str) -> list[str]:
        """Every process says something about ``what``; all call this, in one order.

        Returns:
            What they say, by index.

        Raises:
            ProcessesError: a process does not come, or is at another place of the program.
        """
        mine = [what, text]
        try:
            if self.index == 0:
                inboxes = [self._peers[k].inbox for k in range(1, self.count)]
                said = [mine, *(i.get(timeout=PATIENCE_SECONDS)["said"] for i in inboxes)]
                self._send(said=said)
            else:
                self._peers[0].send(said=mine)
                said = self._peers[0].inbox.get(timeout=PATIENCE_SECONDS)["said"]
        except queue.Empty:
            raise ProcessesError(
                f"not all processes came to {what}", where=f"process {self.index} of {self.count}",
                got=f"no word from another one for {PATIENCE_SECONDS:.0f} s",
                do="let all processes run the same program, without branches for one of them"
            ) from None  # fmt: skip
        refuse_differences("the places in the program", [place for place, _ in said])
        return [text for _, text in said]


def _listening(host: str, port: int) -> socket.socket:
    """On this machine alone where the address is of it alone."""
    alone = host in LOOPBACK
    dual = socket.has_dualstack_ipv6() and not alone
    family = socket.AF_INET6 if dual else socket.AF_INET
    at = (host if alone else "", port)
    try:
        return socket.create_server(at, family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise ProcessesError("process 0 cannot listen for the others", where=f"port {port}",
                             got=error.strerror or str(error),
                             do="give another port, or end what holds it") from error  # fmt: skip


def _whereabouts(facts: Mapping[str, Any]) -> str:
    return f"pid {facts.get('pid')} on {facts.get('host')}"


def named(indices: Sequence[int]) -> str:
    """Processes are named by index.

    Example:
        >>> named([2]), named([0, 3])
        ('process 2', 'processes 0, 3')
    """
    return f"process{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def exit_at_once(text: str = "") -> None:
    """This process ends with status 1: at its usual end, JAX would wait for who is gone.

    What other threads write, such as a checkpoint, is finished if that does not last.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
    until = time.monotonic() + WRITING_SECONDS
    here = (threading.current_thread(), threading.main_thread())
    for thread in threading.enumerate():
        if not thread.daemon and thread not in here:
            thread.join(max(0.0, until - time.monotonic()))
    os._exit(1)


# The connections of this process, which ``shard.connect`` makes.

_star: Star | None = None


def join(star: Star) -> None:
    """From now on the processes end together: the failure of one is told by all."""
    global _star
    _star, shows = star, sys.excepthook

    def end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        is_collective = isinstance(error, jax.errors.JaxRuntimeError)
        if not (is_collective and star.lost.wait(NEWS_SECONDS)):  # else that is told already
            shows(kind, error, trace)
            star.fail(f"{kind.__name__}: {error}")
        exit_at_once()

    sys.excepthook = end
    atexit.register(star.leave)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=star.forget)


def speaks() -> bool:
    """This process prints, draws and writes files: the first of them does, for all."""
    return jax.process_index() == 0


def exchange(what: str, text: str) -> list[str]:
    """Every process says something about ``what``, and hears what all say; one alone hears itself.

    Raises:
        ProcessesError: the processes are not connected, or not at one place of the program.
    """
    if jax.process_count() == 1:
        return [text]
    if _star is None:
        raise ProcessesError("the processes do not know each other", got="no shard.connect()",
                             expected="a call of it at the top of the program",
                             do="from functional_bp import shard; shard.connect()")  # fmt: skip
    return _star.exchange(what, text)


def any_of_them(what: str, flag: bool) -> bool:
    """Whether the flag is set in one process at least; all come to the same answer."""
    return "yes" in exchange(what, "yes" if flag else "")


def require_same(what: str, text: str, do: str = "") -> None:
    """All processes say the same.

    Raises:
        ProcessesError: they do not; it names who says what.
    """
    refuse_differences(what, exchange(what, text), do)


def require_same_program(what: str, lowered: Any) -> None:
    """All processes are about to run the same program, as ``jax.jit(f).lower(...)`` gives it.

    Raises:
        ProcessesError: they are not.
    """
    if jax.process_count() > 1:
        text = lowered if isinstance(lowered, str) else lowered.as_text()
        do = "compare what they are made from: shapes of the data, options, what was drawn"
        require_same(what, digest(text.encode()), do)


def digest(content: bytes) -> str:
    """A few letters that differ where the bytes differ."""
    return hashlib.sha256(content).hexdigest()[:12]


def refuse_differences(what: str, said: Sequence[str], do: str = "") -> None:
    """What processes say, by index, is refused where it differs.

    Raises:
        ProcessesError: it names who says what.

    Example:
        >>> refuse_differences("the versions of JAX", ["0.12", "0.10", "0.12"])
        Traceback (most recent call last):
        functional_bp.errors.ProcessesError: the versions of JAX differ between processes
          got:      0.12 in processes 0, 2; 0.10 in process 1
    """
    where: dict[str, list[int]] = {}
    for index, text in enumerate(said):
        where.setdefault(text, []).append(index)
    if len(where) > 1:
        got = "; ".join(f"{text or 'nothing'} in {named(k)}" for text, k in where.items())
        raise ProcessesError(f"{what} differ between processes", got=got, do=do)
