#!/bin/sh
#
# Ansible managed
#
# Exit status 1 if this portal cannot serve and another one can. Where none can, the address stays where it is, whoever notices first.
[ -e /run/causeway-leaving ] && exit 0
/etc/causeway/virtual-ip/serves && exit 0
/etc/causeway/virtual-ip/another_serves && exit 1
exit 0
