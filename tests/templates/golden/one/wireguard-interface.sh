#!/bin/sh
#
# Ansible managed
#
# run: make the interface and stay as long as it is there, so that systemd makes it anew when it is gone.
# configure: give it what the plan says; also while it is in use, without touching a peer. The agent adds the peers.
set -eu
interface=wg0
addresses='10.64.16.1/20 fd00:64::1000:0:0:1/68 10.66.16.1/20 fd00:66::1000:0:0:1/68'

case $1 in
run)
    if ip link add dev "$interface" type wireguard 2>/dev/null; then
        while [ -e "/sys/class/net/$interface" ]; do
            sleep 1
        done
        echo "$interface is gone" >&2
        exit 1
    fi
    # The kernel has no WireGuard.
    exec wireguard-go --foreground "$interface"
    ;;
configure)
    tries=100
    until wg show "$interface" >/dev/null 2>&1; do
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            echo "$interface did not come up" >&2
            exit 1
        fi
        sleep 0.05
    done
    wg set "$interface" listen-port 51820 private-key /etc/causeway/node/wireguard/private.key
    ip link set dev "$interface" mtu 1392 up
    for address in $addresses; do
        case $address in
        *:*) ip address replace "$address" dev "$interface" nodad ;;
        *) ip address replace "$address" dev "$interface" ;;
        esac
    done
    for address in $(ip -oneline address show dev "$interface" scope global | awk '{print $4}'); do
        case " $addresses " in
        *" $address "*) ;;
        *) ip address delete "$address" dev "$interface" ;;
        esac
    done
    ;;
esac
