#!/bin/sh
#
# Ansible managed
#
# Exit status 0 if this portal can serve, asked the way users come: name, TLS, nginx, portal, database.
exec curl --silent --fail --max-time 1 --noproxy '*' --output /dev/null \
    --connect-to '::127.0.0.1:' --cacert /etc/causeway/tls/ca.crt https://vpn.example.org/healthz
