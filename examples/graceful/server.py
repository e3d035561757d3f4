"""A server that replaces itself on SIGUSR2 and drops no connection: server.py PORT. It answers with the build it read at its start.

The successor inherits the listening socket, so that there is no moment without one; when it serves, it ends its predecessor, which
first answers whom it has.
"""

import http.server
import os
import pathlib
import signal
import socket
import sys
import threading

BUILD = pathlib.Path("BUILD").read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Says which build this is."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BUILD)))
        self.end_headers()
        self.wfile.write(BUILD)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Serves on a socket that it may have inherited; waits for its requests when it is closed."""

    daemon_threads = False
    request_queue_size = 128


def listen(port: int) -> Server:
    """Take over the predecessor's socket, or open one."""
    inherited = os.environ.pop("LISTEN_FD", "")
    server = Server(("127.0.0.1", port), Handler, bind_and_activate=not inherited)
    if inherited:
        server.socket.close()
        server.socket = socket.socket(fileno=int(inherited))
    return server


def main() -> None:
    """Serve until SIGTERM."""
    if "die" in sys.argv:
        sys.exit("told to die")
    predecessor = int(os.environ.pop("PREDECESSOR", "0"))
    server = listen(int(sys.argv[1]))

    def succeed(*_: object) -> None:
        if os.fork() == 0:
            os.chdir(os.environ["PWD"])  # the new release: `current` points there by now
            os.set_inheritable(server.fileno(), True)
            environment = {**os.environ, "LISTEN_FD": str(server.fileno()), "PREDECESSOR": str(os.getppid())}
            os.execve(sys.executable, [sys.executable, "-S", "-E", "server.py", *sys.argv[1:]], environment)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    signal.signal(signal.SIGUSR2, succeed)
    ending = signal.SIG_IGN if "deaf" in sys.argv else lambda *_: threading.Thread(target=server.shutdown).start()
    signal.signal(signal.SIGTERM, ending)
    aside = pathlib.Path(os.environ["PIDFILE"] + ".new")
    aside.write_text(str(os.getpid()))
    aside.replace(os.environ["PIDFILE"])
    if predecessor:
        os.kill(predecessor, signal.SIGTERM)
    server.serve_forever(poll_interval=0.05)
    server.server_close()


if __name__ == "__main__":
    main()
