#!/bin/sh
#
# Ansible managed
#
# Load the rules in one transaction, then let the host forward. At a change on a running host a timer lets SSH in from
# everywhere after a minute, unless it is stopped: systemctl stop causeway-firewall-rollback.timer
set -eu
/usr/sbin/nft --file /etc/causeway/firewall/rules.nft

case $(systemctl is-system-running || true) in
initializing | starting) ;;
*)
    systemctl --quiet stop causeway-firewall-rollback.timer 2>/dev/null || true
    # The rules become newer than what is in force, so that the next run of Ansible applies them again.
    systemd-run --quiet --unit=causeway-firewall-rollback --on-active=60s --timer-property=AccuracySec=1s /bin/sh -c '
        nft insert rule inet causeway input tcp dport 22 accept
        touch /etc/causeway/firewall/rules.nft
        echo "nobody confirmed the new rules: SSH is open to everyone until they are applied again" >&2'
    ;;
esac

# 1 means "unless forwarding": keep accepting router advertisements where the host did.
for setting in /proc/sys/net/ipv6/conf/*/accept_ra; do
    if [ "$(cat "$setting")" = 1 ]; then
        echo 2 >"$setting"
    fi
done
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 1 >/proc/sys/net/ipv4/ip_forward
# Turning forwarding on sets this back.
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
