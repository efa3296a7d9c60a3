"""The tls-crypt key of a profile is derived: portal and nodes agree, a new profile needs no new secret."""

import re

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from vpn_core.openvpn import tls_crypt_key

SECRET = "5a" * 32


def test_key_is_hkdf_expand_of_secret_and_profile():
    """RFC 5869, against another implementation."""
    expected = HKDFExpand(SHA512(), 256, b"causeway tls-crypt employees").derive(bytes.fromhex(SECRET))

    lines = tls_crypt_key(SECRET, "employees").splitlines()

    assert "".join(lines[1:-1]) == expected.hex()


def test_key_has_the_form_of_an_openvpn_static_key():
    text = tls_crypt_key(SECRET, "employees")

    assert re.fullmatch(
        r"-----BEGIN OpenVPN Static key V1-----\n([0-9a-f]{32}\n){16}-----END OpenVPN Static key V1-----\n",
        text,
    )


def test_profiles_and_secrets_have_different_keys():
    keys = {tls_crypt_key(s, p) for s in (SECRET, "5b" * 32) for p in ("employees", "employees1")}

    assert len(keys) == 4


@pytest.mark.parametrize("secret", ["", "5a" * 31, "zz" * 32])
def test_bad_secret_is_refused_and_not_shown(secret):
    with pytest.raises(ValueError, match=r".+") as caught:
        tls_crypt_key(secret, "employees")

    assert not secret or secret not in str(caught.value)
