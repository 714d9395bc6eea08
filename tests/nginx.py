"""A private nginx on the configurations of this repository."""

import os
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from needs import program

DEPLOY = Path(__file__).parent.parent / "deploy" / "nginx"

# The frame that a distribution's nginx.conf is: nothing of what is tested stands here.
FRAME = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    types {{ text/html html; }}
    default_type text/plain;
    include {folder}/orchmgmt/{name};
}}
"""


class Nginx:
    """nginx on one of our configurations, in which only addresses and paths are replaced."""

    def __init__(
        self,
        folder: Path,
        name: str,
        replace: dict[str, str],
        configurations: Iterable[Path] = (),
    ) -> None:
        nginx = program("nginx")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        replace = {
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "listen [::]:80;": f"listen [::1]:{self.port};" if socket.has_ipv6 else "",
            "listen [::]:443 ssl;": f"listen [::1]:{self.port} ssl;" if socket.has_ipv6 else "",
            **replace,
        }
        (folder / "orchmgmt").mkdir(parents=True)
        for path in configurations or DEPLOY.glob("*.conf"):
            text = path.read_text()
            for old, new in replace.items():
                text = text.replace(old, new)
            text = text.replace("include orchmgmt/", f"include {folder}/orchmgmt/")
            (folder / "orchmgmt" / path.name).write_text(text)
        main = folder / "nginx.conf"
        # The workers of root's nginx are somebody else, who may not write in our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        main.write_text(FRAME.format(folder=folder, name=name, user=user))
        self.folder = folder
        command = [nginx, "-p", str(folder), "-c", str(main), "-e", str(folder / "error.log")]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30)
        assert tested.returncode == 0, tested.stderr
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=30).close()
            except ConnectionRefusedError:
                assert self.process.poll() is None, self.log
                time.sleep(0.005)
            else:
                return

    @property
    def log(self) -> str:
        return (self.folder / "error.log").read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
