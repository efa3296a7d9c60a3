"""How full profiles and nodes are and will be: the plan's addresses and clients, less what is in use now."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: In percent; the same as that of ``vpn-portal status --alert``.
ALERT = 90


@dataclass(frozen=True)
class Share:
    """One way into one profile on one node. ``used`` is None where no portal could be asked.

    WireGuard: addresses, and those given out. OpenVPN: clients of a process, and those connected.
    """

    profile: str
    node: str
    by: str
    used: int | None
    most: int

    @property
    def percent(self) -> int | None:
        return None if self.used is None else percent(self.used, self.most)


def percent(part: int, whole: int) -> int:
    return 100 * part // whole if whole else 0


def shares(plan: Mapping[str, Any], occupancy: Sequence[Mapping[str, Any]] | None) -> list[Share]:
    """Return every share of the plan, in the inventory's order of profiles.

    ``occupancy`` is what ``vpn-portal status --by-node --json`` prints; what is not in it is new.
    """
    given: dict[tuple[str, str], int] = {}
    connected: dict[tuple[str, str], int] = {}
    for node in occupancy or ():
        given |= {(node["node"], share["profile_id"]): share["allocated"] for share in node["shares"]}
        connected |= {(node["node"], p["name"]): p["connected"]["connections"] for p in node["processes"]}

    def used(found: Mapping[tuple[str, str], int], *key: str) -> int | None:
        return None if occupancy is None else found.get((key[0], key[1]), 0)

    result = []
    for profile in plan["profiles"]:
        for name, node in plan["nodes"].items():
            result += [
                Share(profile, name, "WireGuard", used(given, name, profile), share["capacity"])
                for share in node["wireguard"]
                if share["profile_id"] == profile
            ]
            result += [
                Share(
                    profile, name, f"OpenVPN {p['protocol']}/{p['port']}", used(connected, name, p["name"]),
                    p["max_clients"],
                )
                for p in node["openvpn"]
                if p["profile_id"] == profile
            ]  # fmt: skip
    return result


def summed(found: Iterable[Share], *, by_node: bool = False) -> list[Share]:
    """Return one share per profile and protocol, over all nodes or for each of them."""
    groups: dict[tuple[str, str, str], list[Share]] = {}
    for share in found:
        node = share.node if by_node else "all"
        groups.setdefault((share.profile, node, share.by.partition(" ")[0]), []).append(share)
    return [
        Share(profile, node, by, _sum(part.used for part in parts), sum(part.most for part in parts))
        for (profile, node, by), parts in groups.items()
    ]


def warnings(plan: Mapping[str, Any], found: Sequence[Share]) -> Iterator[str]:
    """Yield what will run out, with the way out; what the plan itself warns of comes last."""
    full = [profile for profile in summed(found) if _is_full(profile)]
    for profile in full:
        yield f"{_filled(profile)}; add a node, or end sooner what nobody uses"
    known = {(profile.profile, profile.by) for profile in full}
    for share in summed(found, by_node=True):
        if _is_full(share) and (share.profile, share.by) not in known:
            yield f"{_filled(share)}; its other nodes take what comes"
    count, most = len(plan["nodes"]), plan["max_nodes"]
    if most > 1 and percent(count, most) >= ALERT:
        yield f"{count} of {most} node numbers are used; more (vpn_max_nodes) would renumber everyone"
    if count > 1:
        for profile_id, profile in plan["profiles"].items():
            if len(profile["nodes"]) == 1:
                (only,) = profile["nodes"]
                yield f"profile {profile_id} is on {only} alone: nobody gets it while that node is away"
    yield from plan["warnings"]


def _sum(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _is_full(share: Share) -> bool:
    return share.percent is not None and share.percent >= ALERT


def _filled(share: Share) -> str:
    what = "addresses are given out" if share.by == "WireGuard" else "clients are connected"
    where = "" if share.node == "all" else f" on {share.node}"
    return f"{share.profile}{where}: {share.used} of {share.most} {share.by} {what} ({share.percent} %)"
