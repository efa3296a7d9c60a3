"""Which system and browser a visitor has, by what the browser says, and the apps for each system."""

import re
from dataclasses import dataclass

#: In the order in which pages list them. Names of systems are not translated.
SYSTEMS = {"windows": "Windows", "macos": "macOS", "linux": "Linux", "android": "Android", "ios": "iOS"}

#: The first that matches counts: Android says Linux too, and iPhones say Mac OS X.
_SYSTEMS = (
    ("android", re.compile(r"Android")),
    ("ios", re.compile(r"iPhone|iPad|iPod")),
    ("windows", re.compile(r"Windows")),
    ("macos", re.compile(r"Macintosh|Mac OS X")),
    ("linux", re.compile(r"Linux|X11")),
)
#: Chrome OS runs the Android app.
_CHROME_OS = re.compile(r"\bCrOS\b")
_BROWSERS = (
    ("Edge", re.compile(r"Edg(?:e|A|iOS)?/")),
    ("Opera", re.compile(r"OPR/|Opera")),
    ("Samsung Internet", re.compile(r"SamsungBrowser/")),
    ("Firefox", re.compile(r"Firefox/|FxiOS/")),
    ("Chrome", re.compile(r"Chrome/|Chromium/|CriOS/")),
    ("Safari", re.compile(r"Safari/")),
)
LONGEST_USER_AGENT = 512


@dataclass(frozen=True)
class Download:
    """Where the official app of one system is."""

    system: str
    name: str
    url: str

    @property
    def system_name(self) -> str:
        return SYSTEMS[self.system]


@dataclass(frozen=True)
class Family:
    """A set of official apps; ``page`` lists them all."""

    name: str
    page: str
    downloads: tuple[Download, ...]


def _family(name: str, page: str, urls: dict[str, str]) -> Family:
    return Family(name, page, tuple(Download(system, name, urls.get(system, page)) for system in SYSTEMS))


#: As the projects publish them. The apps of govVPN have no public page.
FAMILIES = {
    "eduVPN": _family(
        "eduVPN",
        "https://app.eduvpn.org/",
        {
            "windows": "https://app.eduvpn.org/windows/eduVPNClient_latest.exe",
            "macos": "https://apps.apple.com/app/eduvpn-client/id1317704208",
            "linux": "https://docs.eduvpn.org/client/linux/installation.html",
            "android": "https://play.google.com/store/apps/details?id=nl.eduvpn.app",
            "ios": "https://apps.apple.com/app/eduvpn-client/id1292557340",
        },
    ),
    "LC": _family(
        "Let's Connect!",
        "https://app.letsconnect-vpn.org/",
        {
            "windows": "https://app.letsconnect-vpn.org/windows/LetsConnectClient_latest.exe",
            "macos": "https://apps.apple.com/app/lets-connect-vpn/id1486810037",
            "android": "https://play.google.com/store/apps/details?id=org.letsconnect_vpn.app",
            "ios": "https://apps.apple.com/app/lets-connect-vpn/id1449261843",
        },
    ),
}


def system_of(user_agent: str) -> str:
    """Return the system of a browser, a key of SYSTEMS, or "" when it does not say.

    An iPad in its usual mode says that it is a Mac; nothing else that it sends tells them apart.
    """
    text = user_agent[:LONGEST_USER_AGENT]
    if _CHROME_OS.search(text):
        return "android"
    return next((name for name, pattern in _SYSTEMS if pattern.search(text)), "")


def browser_of(user_agent: str) -> str:
    """Return the browser's name, "" for one that is not known."""
    text = user_agent[:LONGEST_USER_AGENT]
    return next((name for name, pattern in _BROWSERS if pattern.search(text)), "")
