#!/bin/sh
#
# Ansible managed
#
# Give the address to another portal, so that this one can be worked on: what is under way is answered first, what is new goes there. nginx
# and keepalived are stopped afterwards; site.yml, a reboot, or systemctl start nginx keepalived ends that. Where no other portal serves,
# nothing is done. Exit status 1, and everything as before, if the other one does not take the address.
# "leave shutdown" is for the unit of keepalived, which goes first when the host stops: what is under way would wait for an answer whose
# sender has lost the address.
set -eu
goes_down=
if [ "${1:-}" = shutdown ]; then
    [ "$(systemctl is-system-running || true)" = stopping ] || exit 0
    goes_down=yes
fi
has_address() { ip -oneline -4 address show | grep --quiet --fixed-strings ' 198.51.100.9/24 '; }

has_address || exit 0
tries=${goes_down:+2}
tries=${tries:-20}
until /etc/causeway/virtual-ip/another_serves; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "no other portal serves; the address stays here"; exit 0; }
    sleep 0.5
done

# Whatever ends this, nothing is kept out afterwards; keepalived's start takes the table away too. Of a host that goes down nothing is left.
end='nft delete table inet causeway_leaving 2>/dev/null || true; rm -f /run/causeway-leaving'
timer=causeway-leaving-end
if [ ! "$goes_down" ]; then
    trap "$end; systemctl --quiet stop $timer.timer 2>/dev/null || true" EXIT
    # Outlives this shell, which may be killed hard.
    systemctl --quiet stop $timer.timer 2>/dev/null || true
    systemd-run --quiet --no-block --unit=$timer --on-active=60s --timer-property=AccuracySec=1s /bin/sh -c "$end"
fi
trap 'exit 1' HUP INT TERM
# As long as it is there the address stays, though nginx takes nothing new, and each answer asks the client to close its connection.
touch /run/causeway-leaving
# Who asks often has none open after this. nginx closes those that are left, and what is sent on one just then has no answer.
sleep 2
# A new connection is not refused: the client's system asks again a second later, and the other portal answers.
nft --file - <<RULES
table inet causeway_leaving
delete table inet causeway_leaving
table inet causeway_leaving {
    chain input {
        type filter hook input priority -10
        ip daddr 198.51.100.9 tcp dport { 80, 443 } tcp flags & (syn | ack) == syn drop
        ip6 daddr 2001:db8::9 tcp dport { 80, 443 } tcp flags & (syn | ack) == syn drop
    }
}
RULES
if [ "$goes_down" ]; then
    # Its own unit is stopped by systemd only when this one has ended.
    nginx=$(systemctl show --property=MainPID --value nginx.service)
    [ "$nginx" -gt 0 ] || exit 0
    kill -QUIT "$nginx"
    tries=50
    while kill -0 "$nginx" 2>/dev/null && [ "$tries" -gt 0 ]; do
        tries=$((tries - 1))
        sleep 0.1
    done
    exit 0
fi
# It ends when every request is answered. Who is new waits meanwhile, so not for the longest.
timeout 8 systemctl stop nginx.service || true
systemctl stop keepalived.service
tries=20
until /etc/causeway/virtual-ip/serves 198.51.100.9; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ]; then
        systemctl start nginx.service keepalived.service
        echo "the other portal serves, and did not take the address; does keepalived run there?" >&2
        exit 1
    fi
    sleep 0.2
done
echo "another portal has the address"
