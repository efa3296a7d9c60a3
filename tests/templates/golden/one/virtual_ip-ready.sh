#!/bin/sh
#
# Ansible managed
#
# Exit status 1 if this portal cannot serve and another one can. Asked the way users come: name, TLS, nginx, portal, database.
serves() {
    curl --silent --fail --max-time 0.5 --noproxy '*' --output /dev/null --connect-to "::$1:" --cacert /etc/causeway/tls/ca.crt https://vpn.example.org/healthz
}

serves 127.0.0.1 && exit 0
# Where none can serve, the address stays where it is, whoever notices first.
for peer in '198.51.100.30'; do
    serves "$peer" && exit 1
done
exit 0
