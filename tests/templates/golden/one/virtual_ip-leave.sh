#!/bin/sh
#
# Ansible managed
#
# Give the address to another portal, so that this one can be worked on: what is under way is answered first, what is new goes there. nginx
# and keepalived are stopped afterwards; site.yml, a reboot, or systemctl start nginx keepalived ends that. Where no other portal serves,
# nothing is done.
set -eu
has_address() { ip -oneline -4 address show | grep --quiet --fixed-strings ' 198.51.100.9/24 '; }

has_address || exit 0
tries=20
until /etc/causeway/virtual-ip/another_serves; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "no other portal serves; the address stays here"; exit 0; }
    sleep 0.5
done

# A new connection is not refused: the client's system asks again a second later, and the other portal answers.
nft --file - <<RULES
table inet causeway_leaving {
    chain input {
        type filter hook input priority -10
        ip daddr 198.51.100.9 tcp dport { 80, 443 } tcp flags & (syn | ack) == syn drop
        ip6 daddr 2001:db8::9 tcp dport { 80, 443 } tcp flags & (syn | ack) == syn drop
    }
}
RULES
trap 'nft delete table inet causeway_leaving' EXIT
# It ends when every request is answered.
systemctl stop nginx.service
systemctl stop keepalived.service
echo "another portal has the address"
