#!/bin/sh
#
# Ansible managed
#
# start     at boot: the rules that were confirmed, and forwarding after them
# reload    the new rules, for a minute, unless they are confirmed: then the confirmed ones come back
# confirm   somebody came in from outside through the new rules: they stay
# rollback  what the timer does when nobody came
# remove    no rules of ours, and no forwarding
set -eu
cd /etc/causeway/firewall
timer=causeway-firewall-rollback
# There as long as rules.nft is in force and on trial.
trial=/run/causeway-firewall-trial
# There as long as this host forwards because of this script.
forwards=/run/causeway-firewall-forwards
exec 9>/run/causeway-firewall.lock
flock 9

forward_no_more() {
    if [ -e $forwards ]; then
        echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
        echo 0 >/proc/sys/net/ipv4/ip_forward
        rm $forwards
    fi
}

forward() {
    # 1 means "unless forwarding": keep accepting router advertisements where the host did.
    for setting in /proc/sys/net/ipv6/conf/*/accept_ra; do
        if [ "$(cat "$setting")" = 1 ]; then
            echo 2 >"$setting"
        fi
    done
    touch $forwards
    echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # Turning forwarding on sets this back.
    echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
}

# As long as this file exists, each run of Ansible tries the rules again.
try() {
    touch unconfirmed
    # The way back first. It outlives this shell, and at boot it waits for its turn.
    systemctl --quiet stop $timer.timer 2>/dev/null || true
    systemd-run --quiet --no-block --unit=$timer --on-active=60s --timer-property=AccuracySec=1s "$PWD/apply" rollback
    touch $trial
    /usr/sbin/nft --file rules.nft
    forward
}

case $1 in
start)
    case $(systemctl is-system-running || true) in initializing | starting) booting=yes ;; *) booting=no ;; esac
    if [ $booting = no ] || [ ! -e confirmed.nft ]; then
        try
    else
        cmp -s rules.nft confirmed.nft || touch unconfirmed
        /usr/sbin/nft --file confirmed.nft
        forward
    fi
    ;;
reload)
    try
    ;;
confirm)
    if [ ! -e $trial ]; then
        echo "nobody came in through the new rules within a minute, so the rules before are in force:" \
            "do firewall_ssh_sources and firewall_ssh_port let the control machine in?" >&2
        exit 1
    fi
    rm $trial
    systemctl --quiet stop $timer.timer 2>/dev/null || true
    install -m 0600 rules.nft confirmed.new
    sync confirmed.new
    mv confirmed.new confirmed.nft
    rm -f unconfirmed
    ;;
rollback)
    # Confirmed while this waited for the lock.
    [ -e $trial ] || exit 0
    rm $trial
    if [ -e confirmed.nft ]; then
        /usr/sbin/nft --file confirmed.nft
        echo "nobody came in through the new rules: the ones before are back in force" >&2
    else
        forward_no_more
        /usr/sbin/nft 'table inet causeway; delete table inet causeway'
        echo "nobody came in through the new rules: there are none now, and no forwarding" >&2
    fi
    ;;
remove)
    forward_no_more
    rm -f $trial
    systemctl --quiet stop $timer.timer 2>/dev/null || true
    /usr/sbin/nft 'table inet causeway; delete table inet causeway'
    ;;
esac
