"""Flags and variables that say where the page opens: what they mean, and what is refused."""

import argparse
from pathlib import Path

import pytest

from ui.serving.environment import (
    ALLOW_HOSTS,
    PASSWORD,
    PASSWORD_FILE,
    ROOT_PATH,
    SERVER_NAME,
    SERVER_PORT,
    take_variables,
)
from ui.serving.options import (
    Credentials,
    Options,
    Parser,
    WrongOption,
    add_flags,
    open_problem,
    options_from,
)
from ui.serving.same_origin import allowed_hosts


def read(*flags: str, on_space: bool = False, **variables: str) -> Options:
    parser = Parser(allow_abbrev=False)
    add_flags(parser)
    parsed: argparse.Namespace = parser.parse_args(list(flags))
    return options_from(parsed, take_variables(variables), on_space=on_space)


def refusal(*flags: str, **variables: str) -> str:
    with pytest.raises(WrongOption) as raised:
        read(*flags, **variables)
    sentence = str(raised.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_without_flags_the_page_is_this_machines_alone() -> None:
    assert read() == Options(host="127.0.0.1", port=7860)


def test_variables_count_and_flags_win() -> None:
    variables = {SERVER_NAME: "localhost", SERVER_PORT: "8000", ROOT_PATH: "/a/"}

    assert read(**variables) == Options(host="localhost", port=8000, root_path="/a")
    flags = ("--host", "127.0.0.1", "--port=8001", "--root-path", "/b")
    assert read(*flags, **variables) == Options(port=8001, root_path="/b")


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        (["--host", "0.0.0.0"], {}, "--host"),
        ([], {SERVER_NAME: "0.0.0.0"}, SERVER_NAME),
        ([], {SERVER_NAME: "::"}, SERVER_NAME),
    ],
)
def test_a_wide_address_needs_a_password(
    flags: list[str], variables: dict[str, str], named: str
) -> None:
    sentence = refusal(*flags, **variables)
    assert "Add --password" in sentence
    assert f"set by {named}" in sentence
    assert read("--password", "ann:secret", *flags, **variables).credentials


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_password(host: str) -> None:
    options = read("--host", host)
    assert open_problem(options) == ""
    assert "*" not in allowed_hosts(options)


def test_a_space_opens_as_the_platform_says() -> None:
    options = read(on_space=True)
    assert options.host == "0.0.0.0"
    assert allowed_hosts(options) == ["*"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--port", "many", "--port must be a number from 1 to 65535, got 'many'"),
        ("--port", "0", "from 1 to 65535"),
        ("--port", "99999", "from 1 to 65535"),
        ("--port", "99999999999999999999999", "from 1 to 65535"),
        ("--port", "٣", "from 1 to 65535"),
        ("--port", "", "from 1 to 65535"),
        ("--host", "", "--host must be a host name or an address"),
        ("--host", "http://here", "--host must be a host name or an address"),
        ("--root-path", "workbench", "must be a path like /workbench"),
        ("--root-path", "/a/../b", "must be a path like /workbench"),
        ("--root-path", "/a b", "must be a path like /workbench"),
        ("--root-path", "//evil.example", "must be a path like /workbench"),
        ("--root-path", "ftp://example.com/a", "must be a path like /workbench"),
        ("--root-path", "/a?b=1", "must be a path like /workbench"),
        ("--root-path", "http://[", "must be a path like /workbench"),
        ("--root-path", "http://here:port/a", "must be a path like /workbench"),
        ("--allow-host", "*", "must be a host name without http:// and port"),
        ("--allow-host", "http://example.com", "must be a host name without http:// and port"),
        ("--allow-host", "example.com:80", "must be a host name without http:// and port"),
        ("--allow-host", "", "must be a host name without http:// and port"),
        ("--trust-proxy", "proxy", "must be an address or a network"),
        ("--trust-proxy", "0.0.0.0/0", "would trust everyone"),
        ("--trust-proxy", "::/0", "would trust everyone"),
        ("--colour", "blue", "Unrecognized arguments: --colour blue"),
        ("--pass", "ann:secret", "Unrecognized arguments"),
    ],
)
def test_a_wrong_value_is_one_sentence(flag: str, value: str, said: str) -> None:
    assert said in refusal(flag, value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [(SERVER_PORT, "many"), (SERVER_NAME, "a b"), (ROOT_PATH, "x"), (ALLOW_HOSTS, "a,b:1")],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    assert variable in refusal(**{variable: value})


def test_hosts_and_proxies_may_be_repeated() -> None:
    options = read(
        "--allow-host", "Example.com", "--allow-host", "*.example.org",
        "--trust-proxy", "10.1.2.3/8",
        **{ALLOW_HOSTS: "other.example"},
    )  # fmt: skip
    assert options.allow_hosts == ("example.com", "*.example.org")
    assert options.trusted_networks == ("127.0.0.0/8", "::1", "10.0.0.0/8")
    assert {"example.com", "127.0.0.1"} < set(allowed_hosts(options))
    assert read(**{ALLOW_HOSTS: "a.example, b.example"}).allow_hosts == ("a.example", "b.example")


def test_the_whole_address_behind_a_proxy_names_a_host_and_a_path() -> None:
    options = read("--root-path", "https://example.com:8443/workbench/")
    assert options.path == "/workbench"
    assert "example.com" in allowed_hosts(options)


# --- the password ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hunter2", "has no colon"),
        (":hunter2", "has no name before the colon"),
        ("  :hunter2", "has no name before the colon"),
        ("ann:", "has no password after the colon"),
        ("ann:  ", "has no password after the colon"),
        ("", "has no colon"),
        ("ann:hunter2\nbob:hunter2", "contains a line break"),
        ("ann:hunter2" + "2" * 1000, "is longer than 1000 characters"),
    ],
)
@pytest.mark.parametrize("way", ["flag", "variable", "file", "file variable"])
def test_a_password_that_nobody_could_enter_is_refused(
    text: str, said: str, way: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(text)
    if way == "variable" and not text:
        assert read(**{PASSWORD: text}).credentials is None
        return
    sentence = {
        "flag": lambda: refusal("--password", text),
        "variable": lambda: refusal(**{PASSWORD: text}),
        "file": lambda: refusal("--password-file", str(file)),
        "file variable": lambda: refusal(**{PASSWORD_FILE: str(file)}),
    }[way]()

    assert said in sentence
    assert "hunter2" not in sentence


def test_a_password_may_hold_colons_and_come_from_a_file(tmp_path: Path) -> None:
    wanted = Credentials("ann", "a:b c")
    file = tmp_path / "password"
    file.write_bytes(b"ann:a:b c\r\n")

    assert read("--password", "ann:a:b c").credentials == wanted
    assert read("--password-file", str(file)).credentials == wanted
    assert read(**{PASSWORD: "ann:a:b c\n"}).credentials == wanted
    assert read(**{PASSWORD_FILE: str(file)}).credentials == wanted


def test_a_flag_wins_over_a_variable_of_any_kind(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("file:secret")

    options = read("--password-file", str(file), **{PASSWORD: "variable:secret"})

    assert options.credentials == Credentials("file", "secret")


def test_two_passwords_contradict(tmp_path: Path) -> None:
    assert "Both --password and --password-file" in refusal(
        "--password", "a:b", "--password-file", str(tmp_path)
    )
    assert f"Both {PASSWORD} and {PASSWORD_FILE}" in refusal(
        **{PASSWORD: "a:b", PASSWORD_FILE: str(tmp_path)}
    )


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfea:b")

    assert "No such file" in refusal("--password-file", str(tmp_path / "none"))
    assert "Is a directory" in refusal("--password-file", str(tmp_path))
    assert "not text in UTF-8" in refusal("--password-file", str(binary))


def test_credentials_match_exactly_and_are_not_printed() -> None:
    credentials = Credentials("ann", "Pässword\ud800")

    assert credentials.match(" ann ", "Pässword\ud800")
    for name, secret in (("Ann", "Pässword\ud800"), ("ann", "pässword"), ("ann", ""), ("", "")):
        assert not credentials.match(name, secret)
    assert "ssword" not in repr(Options(credentials=credentials))
