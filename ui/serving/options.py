"""Where the page opens and who may use it: flags and variables, checked before the start.

Flags win over variables. Each wrong value raises WrongOption with one sentence. Imports nothing of
Gradio, because Gradio may only be imported afterwards.
"""

import argparse
import errno
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from ui.serving import environment as names

DEFAULT_PORT = 7860
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1")
# On a Space every request comes through the platform's proxies, which have private addresses.
SPACE_NETWORKS = (*LOOPBACK_NETWORKS, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
LONGEST_PASSWORD = 1000
HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
ROOT_PATH = re.compile(r"(https?://[A-Za-z0-9.-]+(:\d{1,5})?)?(/[A-Za-z0-9._~-]+)*")


class WrongOption(Exception):
    """A flag or variable that cannot be used; its text is one sentence for the reader."""


@dataclass(frozen=True)
class Credentials:
    """The name and password that the page asks for."""

    name: str
    secret: str

    def match(self, name: str, secret: str) -> bool:
        """Return whether both are correct, in constant time."""
        pairs = ((self.name, name.strip()), (self.secret, secret))
        return all([hmac.compare_digest(_digest(own), _digest(given)) for own, given in pairs])

    def __repr__(self) -> str:
        return "Credentials(...)"


@dataclass(frozen=True)
class Options:
    """Where the page opens and who may use it."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    root_path: str = ""
    """The path or the whole address under which a proxy serves the page; empty without one."""
    allow_hosts: tuple[str, ...] = ()
    trust_proxies: tuple[str, ...] = ()
    credentials: Credentials | None = None
    on_space: bool = False

    @property
    def path(self) -> str:
        """The path alone: `/workbench`, or empty."""
        return urlsplit(self.root_path).path

    @property
    def trusted_networks(self) -> tuple[str, ...]:
        """The addresses whose X-Forwarded headers are trusted."""
        return (*(SPACE_NETWORKS if self.on_space else LOOPBACK_NETWORKS), *self.trust_proxies)


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes as one sentence, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise WrongOption(f"{message[:1].upper()}{message[1:]}. --help lists the flags.")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that set where the page opens and who may use it."""
    add = parser.add_argument
    add("--host", help=f"the address to open on (default 127.0.0.1; or {names.SERVER_NAME})")
    add("--port", help=f"the port to open on (default {DEFAULT_PORT}; or {names.SERVER_PORT})")
    add(
        "--password",
        metavar="NAME:SECRET",
        help="name and password for the page; visible in the process list, so prefer"
        f" --password-file or {names.PASSWORD}",
    )
    add(
        "--password-file",
        metavar="FILE",
        help=f"a file that contains name:secret (or {names.PASSWORD_FILE})",
    )
    add(
        "--root-path",
        metavar="PATH",
        help=f"the path at which a proxy serves the page, like /workbench (or {names.ROOT_PATH})",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        help="a host name of the page, in addition to this machine's own;"
        f" may be repeated (or {names.ALLOW_HOSTS}, with commas)",
    )
    add(
        "--trust-proxy",
        metavar="ADDRESS",
        action="append",
        help="a proxy, or a network of proxies, whose X-Forwarded headers are trusted, in addition"
        " to those on this machine; may be repeated",
    )


def options_from(
    flags: argparse.Namespace, variables: Mapping[str, str], *, on_space: bool
) -> Options:
    """Return the options, or raise WrongOption."""
    host = _chosen(flags.host, "--host", variables, names.SERVER_NAME)
    port = _chosen(flags.port, "--port", variables, names.SERVER_PORT)
    root = _chosen(flags.root_path, "--root-path", variables, names.ROOT_PATH)
    options = Options(
        host=_host(*host) if host else ("0.0.0.0" if on_space else "127.0.0.1"),
        port=_port(*port) if port else DEFAULT_PORT,
        root_path=_root_path(*root) if root else "",
        allow_hosts=_allow_hosts(flags.allow_host, variables),
        trust_proxies=tuple(_network(text) for text in flags.trust_proxy or ()),
        credentials=_credentials(flags, variables),
        on_space=on_space,
    )
    if problem := open_problem(options, source=host[1] if host else "--host"):
        raise WrongOption(problem)
    return options


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    return host in LOOPBACK


def open_problem(options: Options, *, source: str = "--host") -> str:
    """Return why the app may not open on this address; empty if it may."""
    if is_loopback(options.host) or options.on_space or options.credentials:
        return ""
    return (
        f"Not opened on {options.host}, set by {source}: anyone who can reach it could train and"
        " write files here. Add --password name:secret or --password-file FILE, or set"
        f" {names.PASSWORD}, to allow it."
    )


def port_problem(host: str, port: int) -> str:
    """Return why a port cannot be used; empty if it can."""
    # Gradio 6.31 needs the port on 127.0.0.1 too, for any address.
    for address in dict.fromkeys((host, "127.0.0.1")):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    return f"{address} is not an address of this machine. Try --host 127.0.0.1."
                other = port + 1 if port < 65535 else DEFAULT_PORT
                return (
                    f"Port {port} on {address} cannot be used: {error.strerror or error}. "
                    f"Is the app open already? If not, try --port {other}."
                )
    return ""


def _chosen(
    value: str | None, flag: str, variables: Mapping[str, str], variable: str
) -> tuple[str, str] | None:
    """Return the text and its source; an empty flag counts, an empty variable does not."""
    if value is not None:
        return value.strip(), flag
    return (variables[variable].strip(), variable) if variable in variables else None


def _host(text: str, source: str) -> str:
    host = text.removeprefix("[").removesuffix("]")
    if not host or any(c.isspace() or c in "/@" for c in host):
        raise WrongOption(f"{source} must be a host name or an address, got {text!r}.")
    return host


def _port(text: str, source: str) -> int:
    # isdecimal alone accepts digits of other scripts
    if text.isascii() and text.isdecimal() and 0 < int(text[:6]) < 65536 and len(text) < 6:
        return int(text)
    raise WrongOption(f"{source} must be a number from 1 to 65535, got {text!r}. Try 7860.")


def _root_path(text: str, source: str) -> str:
    root = text.rstrip("/")
    if not ROOT_PATH.fullmatch(root) or ".." in root.split("/"):
        raise WrongOption(
            f"{source} must be a path like /workbench or an address like"
            f" https://example.com/workbench, got {text!r}."
        )
    return root


def _allow_hosts(flags: Sequence[str] | None, variables: Mapping[str, str]) -> tuple[str, ...]:
    if flags is not None:
        return tuple(_allowed_host(text, "--allow-host") for text in flags)
    listed = variables.get(names.ALLOW_HOSTS, "").split(",")
    return tuple(_allowed_host(text, names.ALLOW_HOSTS) for text in listed if text.strip())


def _allowed_host(text: str, source: str) -> str:
    name = text.strip().lower().rstrip(".")
    if _is_address(name.strip("[]")):
        return name.strip("[]")
    if not HOST_NAME.fullmatch(name):
        raise WrongOption(
            f"{source} must be a host name without http:// and port, like example.com or"
            f" *.example.com, got {text!r}."
        )
    return name


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise WrongOption(
            f"--trust-proxy must be an address or a network like 10.0.0.0/8, got {text!r}."
        ) from None
    if network.prefixlen == 0:
        raise WrongOption(
            f"--trust-proxy {text} would trust everyone. Give the addresses of your proxies."
        )
    return str(network)


def _credentials(flags: argparse.Namespace, variables: Mapping[str, str]) -> Credentials | None:
    """Return the name and password; flags win over variables, and two of one kind conflict."""
    given = [(flags.password, "--password"), (flags.password_file, "--password-file")]
    if flags.password is None and flags.password_file is None:
        pair = (names.PASSWORD, names.PASSWORD_FILE)
        given = [(variables.get(name), name) for name in pair]
    (text, source), (file, file_source) = given
    if text is not None and file is not None:
        raise WrongOption(f"Both {source} and {file_source} are given. Use one of them.")
    if file is not None:
        return _parse_password(_read_password(Path(file).expanduser(), file_source), file_source)
    return None if text is None else _parse_password(text, source)


def _read_password(file: Path, source: str) -> str:
    try:
        with file.open("rb") as stream:
            text = stream.read(LONGEST_PASSWORD * 4 + 1).decode("utf-8-sig")
    except OSError as error:
        raise WrongOption(f"{source} {file} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise WrongOption(f"{source} {file} is not text in UTF-8.") from None
    return text


def _parse_password(text: str, source: str) -> Credentials:
    """Split name:secret. The messages never show the text, which may be the secret."""
    text = text.rstrip("\r\n")
    name, colon, secret = text.partition(":")
    name = name.strip()
    if not colon:
        problem = "has no colon"
    elif not name:
        problem = "has no name before the colon"
    elif not secret.strip():
        problem = "has no password after the colon"
    elif len(text) > LONGEST_PASSWORD:
        problem = f"is longer than {LONGEST_PASSWORD} characters"
    elif not text.isprintable():
        problem = "contains a line break or another character that cannot be typed"
    else:
        return Credentials(name, secret)
    raise WrongOption(f"The password from {source} {problem}. Write it as name:secret.")


def _digest(text: str) -> bytes:
    """Hash, so that a comparison does not reveal the length either."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
