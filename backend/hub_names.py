"""How a person names a data set of the Hugging Face Hub, its configuration and its split.

`owner/set`, `owner/set:configuration`, `owner/set:configuration:split` and `owner/set::split`; a
revision after `@`; or the address of its page. Knows nothing of what the Hub holds.
"""

import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from backend.errors import InvalidRequest
from backend.files.uploads import ADAPTER_SUFFIXES, DATA_SUFFIXES, MODEL_SUFFIXES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/datasets/", re.IGNORECASE)
# Neither a drive of Windows (one letter) nor the scheme of an address (`://`).
NAMED = re.compile(rf"(?P<id>{HUB_ID.pattern})(@(?P<revision>[^:@\\]*))?(?P<rest>(:[^/\\]*)?)")
REVISION = re.compile(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*")
SPLIT = re.compile(r"\w+(\.\w+)*")
LONGEST = 150
CONFIGURATION = re.compile(rf"[^<>:/\\|?*@\x00-\x1f\x7f]{{1,{LONGEST}}}")
SPELLING = (
    "Write owner/set, owner/set:configuration, owner/set:configuration:split or owner/set::split."
)
PAGES = ("viewer", "tree")
"""The pages of a data set whose addresses name a part of it."""


@dataclass(frozen=True)
class HubName:
    """A data set of the Hub, and what of it was named; empty where it was not."""

    id: str
    revision: str = ""
    configuration: str = ""
    split: str = ""

    def __str__(self) -> str:
        """Return the name as `read` understands it."""
        at = f"@{self.revision}" if self.revision else ""
        rest = f":{self.configuration}:{self.split}".rstrip(":")
        return f"{self.id}{at}{rest}"

    def of(self, *, configuration: str = "", split: str = "") -> "HubName":
        """Return the name of another part of the same data set."""
        return replace(self, configuration=configuration, split=split)


def names_data_set(source: str) -> bool:
    """Return whether a source has the spelling of a data set of the Hub, also a wrong one."""
    if ADDRESS.match(source):
        return True
    named = NAMED.fullmatch(source)
    if named is None or len(named["id"]) == 1:
        return False
    before = (named["id"], source.removesuffix(named["rest"]))
    files = (*DATA_SUFFIXES, *ADAPTER_SUFFIXES, *MODEL_SUFFIXES)
    return not any(each.lower().endswith(files) for each in before)


def read(source: str) -> HubName:
    """Return what a source names; raises InvalidRequest where it is not spelled as it should be."""
    if ADDRESS.match(source):
        return _of_address(source)
    named = NAMED.fullmatch(source)
    if named is None:
        raise InvalidRequest(f"{source!r} is not a data set of the Hub.", cure=SPELLING)
    _, *parts = named["rest"].split(":")
    if len(parts) > 2:
        raise InvalidRequest(f"{source!r} has too many parts after the name.", cure=SPELLING)
    configuration, split = [*parts, "", ""][:2]
    revision = named["revision"]
    if revision == "":
        raise InvalidRequest(f"{source!r} has no revision after the @.", cure="Name it, or leave "
                             "the @ out.")  # fmt: skip
    return _checked(HubName(named["id"], revision or "", configuration, split), source)


def is_configuration(name: str) -> bool:
    """Return whether a text can be the name of a configuration, and of a folder on any system."""
    return CONFIGURATION.fullmatch(name) is not None and name.strip(". ") == name


def _of_address(address: str) -> HubName:
    path = urlsplit(address if "://" in address else f"https://{address}").path
    owner, _, rest = path.strip("/").removeprefix("datasets/").partition("/")
    name, *parts = rest.split("/")
    # Old data sets have no owner: huggingface.co/datasets/squad/viewer.
    id, parts = (owner, [name, *parts]) if name in PAGES else (f"{owner}/{name}".strip("/"), parts)
    page, *parts = [unquote(part) for part in parts if part] or [""]
    if page == "viewer" and len(parts) <= 2:
        configuration, split = [*parts, "", ""][:2]
        return _checked(HubName(id, "", configuration, split), address)
    if page == "tree" and len(parts) == 1:
        return _checked(HubName(id, revision=parts[0]), address)
    if page:
        raise InvalidRequest(
            f"{address!r} is the address of a part of the data set {id!r} that cannot be named "
            "alone.",
            cure="Write owner/set:configuration:split, or download the file and enter its path.",
        )
    return _checked(HubName(id), address)


def _checked(name: HubName, source: str) -> HubName:
    if not HUB_ID.fullmatch(name.id):
        raise InvalidRequest(f"{source!r} is not a data set of the Hub.", cure=SPELLING)
    for what, text, good in (
        ("revision", name.revision, REVISION.fullmatch(name.revision)),
        ("configuration", name.configuration, is_configuration(name.configuration)),
        ("split", name.split, SPLIT.fullmatch(name.split)),
    ):
        if text and not (good and len(text) <= LONGEST):
            raise InvalidRequest(f"{text[:200]!r} cannot be the name of a {what}.", cure=SPELLING)
    return name
