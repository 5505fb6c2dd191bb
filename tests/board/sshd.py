"""A real OpenSSH server on loopback, with its own keys, configuration and home folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

SFTP = Path("/usr/lib/openssh/sftp-server")


class Server:
    """An sshd for one user; ``cut`` ends it and every connection, ``start`` brings it back.

    Args:
        folder: Keys, configuration, logs and the home folder lie here.
        name: The host name that the client's configuration knows it by.
    """

    def __init__(self, folder: Path, name: str = "board") -> None:
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None or shutil.which("ssh") is None:
            pytest.skip("needs openssh-server and openssh-client (Debian packages)")
        self.program = program
        self.name = name
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.folder = folder
        self.bin = folder / "bin"
        self.environment = folder / "environment"
        self.client = folder / "client_config"
        self._process: subprocess.Popen[bytes] | None = None
        for key in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)],
                check=True,
            )
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.port = free_port()
        enter = folder / "enter.sh"
        # Both shells and file transfers begin in the server's own home folder.
        self.bin.mkdir()
        enter.write_text(
            f'#!/bin/sh\ncd "{self.home}" || exit 1\nexport HOME="{self.home}"\n'
            f'export PATH="{self.bin}:$PATH" TMPDIR="{folder}"\n. "{self.environment}"\n'
            'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        enter.chmod(0o755)
        self.environment.touch()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/sshd.pid\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\n"
            f"UsePAM no\nPermitRootLogin yes\nForceCommand {enter}\nSubsystem sftp {SFTP}\n"
        )
        known = (folder / "host_key.pub").read_text().split()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known[0]} {known[1]}\n")
        self.client.write_text(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n"
        )
        self.start()

    def install(self, name: str, text: str) -> None:
        """Put a program on the PATH of whoever logs in."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def be_a_jetson(self, **variables: str) -> None:
        """Pass for an Orin Nano with JetPack 6.2 (see ``jetson_stand_in``), with more variables."""
        self.set(
            PYTHONPATH=str(Path(__file__).parent / "jetson_stand_in"),
            STAND_IN_COMPATIBLE="nvidia,p3768-0000+p3767-0003 nvidia,p3767-0005 nvidia,tegra234",
            STAND_IN_L4T="# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
            **variables,
        )

    def set(self, **variables: str) -> None:
        """Set environment variables for whoever logs in."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        self.environment.write_text("".join(lines))

    def start(self) -> None:
        """Listen; returns when connections are taken."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._process = subprocess.Popen(
            [self.program, "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stderr=(self.folder / "sshd.log").open("ab"),
            start_new_session=True,
        )
        deadline = time.time() + 10
        while time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.skip(f"sshd does not start: {(self.folder / 'sshd.log').read_text()[-300:]}")

    def cut(self) -> None:
        """End the server and all its connections at once; what runs detached goes on."""
        assert self._process is not None
        for process in [*sessions(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the server and whatever still runs below its home."""
        self.cut()
        for pid in self.home.glob(".elastic-export/runs/*/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


def sessions(pid: int) -> list[int]:
    """The sshd processes below a process, not the commands they run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line
            )
        except (OSError, ValueError):
            continue
        if fields.get("PPid") == str(pid) and fields.get("Name", "").startswith("sshd"):
            child = int(status.parent.name)
            found += [*sessions(child), child]
    return found


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
